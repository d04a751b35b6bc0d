"""Following the log of a job's host 0 through broken connections, restarts and new pods."""

import threading
from collections.abc import Callable
from datetime import datetime

from nanocode_core.jobs.gke.cluster import Cluster, Pod

RETRY_SECONDS = 2.0
FINISH_SECONDS = 20.0
"""How long to wait for the last lines of a job that has ended."""


class LogFollower:
    """Gives every line of the pods it is told of to `line`, in a thread a pod, each line once.

    Attributes:
        error: the last line that began with "error: ", without that.
        newest: when the newest line was written, Unix seconds; 0: there is none yet.
    """

    def __init__(self, cluster: Cluster, line: Callable[[str], None]) -> None:
        self._cluster, self._line = cluster, line
        self._threads: dict[str, threading.Thread] = {}
        self._end = threading.Event()
        self._ended: set[str] = set()
        self._lock = threading.Lock()  # over `newest`, `_early` and the order of lines
        self._early: set[str] = set()  # the lines that were given before the log had them
        self.error: str | None = None
        self.newest = 0.0

    def follow(self, pod: Pod) -> None:
        """Begin to follow a pod's log, and note when it has ended; again: nothing else happens."""
        if pod.phase in ("Succeeded", "Failed"):
            self._ended.add(pod.uid)
        if pod.uid not in self._threads:
            thread = threading.Thread(target=self._run, args=(pod,), name=f"log {pod.name}", daemon=True)
            self._threads[pod.uid] = thread
            thread.start()

    def give(self, text: str, written: float) -> None:
        """Give a line that was had from elsewhere, unless the log is as far; the log won't give it again.

        Args:
            text: the line as the log will have it.
            written: when, Unix seconds, not after its moment in the log.
        """
        with self._lock:
            if written > self.newest:
                self._early.add(text)
                self._line(text)

    def finish(self) -> None:
        """Wait for the last lines, as long as they may take."""
        self._ended.update(self._threads)
        for thread in self._threads.values():
            thread.join(FINISH_SECONDS)

    def close(self) -> None:
        """Stop; threads that wait for the network end with the process."""
        self._end.set()

    def _run(self, pod: Pod) -> None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        since: datetime | None = None
        seen: list[str] = []  # the lines of the newest moment: a new connection gives them again
        while not self._end.is_set():
            over = pod.uid in self._ended
            try:
                for stamp, text in self._cluster.log(pod.name, since):
                    if since is not None and (stamp < since or (stamp == since and text in seen)):
                        continue
                    seen = [*seen, text] if stamp == since else [text]
                    since = stamp
                    self._take(text, stamp.timestamp())
                if over:
                    return
            except (ApiException, HTTPError, OSError) as error:
                if isinstance(error, ApiException) and error.status == 404:
                    return
                if over:
                    return
            self._end.wait(RETRY_SECONDS)

    def _take(self, text: str, written: float) -> None:
        if self._end.is_set():
            return
        if text.startswith("error: "):
            self.error = text.removeprefix("error: ")
        with self._lock:
            self.newest = max(self.newest, written)
            if text in self._early:
                self._early.remove(text)
            else:
                self._line(text)
