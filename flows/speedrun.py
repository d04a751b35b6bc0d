"""`nanocode speedrun`: the flow in this process, with a server of its own if none is up.

The server starts while the run is planned and Prefect is imported. It is there for the record and
the UI: a run goes on without it where none can be had, or where it dies on the way.
"""

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from flows import server
from flows.pipeline import Outcome, Schedule, headline, prepare, run_plainly, summarize
from nanocode_core.config import load_config
from nanocode_core.errors import StorageError, UserError
from nanocode_core.jobs.launcher import JobFailed, JobPreempted

FAILED = 1
STOPPED = 130


class RunError(Exception):
    """The run ended early; the message is the one line to show."""


def speedrun(
    preset: str = "demo", sets: Iterable[str] = (), stages: Iterable[str] | None = None, newest: bool = False
) -> int:
    """Run the pipeline, or `stages` of it, and print what happens; the last line is a JSON object.

    Returns the exit code.

    Raises:
        UserError, StorageError: bad input; the caller shows the line and exits with 2.
    """
    begin = time.monotonic()
    sets, stages = list(sets), None if stages is None else list(stages)
    config = load_config(preset, sets)
    schedule = prepare(config, stages, newest)
    _say(_plan(schedule))
    run_server = server.RunServer()
    try:
        parameters = {"preset": preset, "set": sets, "stages": stages, "newest": newest}
        summary = _run(run_server, schedule, parameters, begin)
    except (RunError, JobFailed, JobPreempted) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last save", file=sys.stderr)
        return STOPPED
    finally:
        run_server.stop()
    _show(summary)
    print(json.dumps(summary), flush=True)
    return 0


def _run(run_server: server.RunServer, schedule: Schedule, parameters: dict[str, Any], begin: float) -> dict[str, Any]:
    """Under Prefect if we can; returns the summary."""
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        _configure(run_server.url)
        from flows.nanocode import nanocode  # Prefect reads its settings when it is imported

        reason = run_server.wait()
        if reason is None:
            _echo_run_logs()
            try:
                return _conduct(nanocode, parameters, begin)
            except Exception:
                if run_server.alive:
                    raise
                reason = "the Prefect server ended during the run"
        _say(f"prefect: {reason}; going on without its record")
        outcomes = run_plainly(schedule, _say, lambda outcome: _say(_done(outcome)))
        return summarize(schedule, outcomes, time.monotonic() - begin)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _conduct(nanocode: Any, parameters: dict[str, Any], begin: float) -> dict[str, Any]:
    """Call the flow; its failed states become exceptions."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    try:
        state = nanocode(**parameters, return_state=True)
    finally:
        # What is still on its way to the server would be lost with it.
        for worker in (EventsWorker, APILogWorker):
            worker.drain_all(timeout=5)
    if state.is_completed():
        summary: dict[str, Any] = state.result()
        return {**summary, "minutes": round((time.monotonic() - begin) / 60, 3)}
    if state.name == "BadInput":
        raise UserError(state.message)
    cause = state.result(raise_on_failure=False)
    if isinstance(cause, Exception) and not isinstance(cause, JobFailed | JobPreempted):
        raise cause
    raise RunError(state.message or f"the run ended as {state.name}")


def _configure(url: str) -> None:
    """Prefect's settings for this process: our server; its own chatter stays out of the terminal."""
    server.apply(
        {
            **server.environment(),
            "PREFECT_API_URL": url,
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
            "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
            "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        }
    )


class _Echo(logging.Handler):
    """Prints the lines that the flow logs for the user; errors are shown once, at the end."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "nanocode", False) and not record.getMessage().startswith("error: "):
            _say(record.getMessage())


def _echo_run_logs() -> None:
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(handler, _Echo) for handler in logger.handlers):
            logger.addHandler(_Echo())


def _terminated(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(text, flush=True)


def _plan(schedule: Schedule) -> str:
    """The plan as text: every wanted stage, reused or to build."""
    config = schedule.config
    lines = [f"nanocode {config.preset} (store: {schedule.store.root})"]
    for planned in schedule.todo:
        what = "to build" if planned.record is None else "reused"
        lines.append(f"  {planned.stage.name:<10} {planned.fingerprint}  {what}")
    return "\n".join(lines)


def _done(outcome: Outcome) -> str:
    return f"{outcome.stage}: {'reused' if outcome.reused else 'built'} {outcome.fingerprint}"


def _show(summary: dict[str, Any]) -> None:
    """The table of stages and the place of the report."""
    table = Table(title=f"nanocode {summary['preset']}", title_justify="left")
    table.add_column("stage")
    table.add_column("minutes", justify="right")
    table.add_column("")
    table.add_column("headline", overflow="fold")
    for name, stage in summary["stages"].items():
        table.add_row(name, f"{stage['minutes']:.2f}", stage["state"], headline(stage["metrics"]))
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table)
    print(f"this run: {summary['minutes']:.1f} minutes")
    if summary["report"]:
        print(f"report: {summary['report']}")


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m flows.speedrun`: the same as `nanocode speedrun`; exit code 0, 1 or 2."""
    parser = argparse.ArgumentParser(prog="python -m flows.speedrun", description=__doc__)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="FIELD=VALUE")
    parser.add_argument("--stages", type=lambda text: text.split(","), metavar="STAGE,...")
    parser.add_argument("--newest", action="store_true", help="evaluate the newest dpo artifact of the store")
    options = parser.parse_args(argv)
    try:
        return speedrun(options.preset, options.sets, options.stages, options.newest)
    except (UserError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
