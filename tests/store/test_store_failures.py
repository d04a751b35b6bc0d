import errno
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nanocode_core.errors import StorageError
from nanocode_core.store import Files
from nanocode_core.store.failures import storage_error


class Refuse(BaseHTTPRequestHandler):
    """Answers 403 to every request, as Google does to a principal without a role on the bucket."""

    def refuse(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        text = "bot@project.iam does not have storage.objects access to the object."
        body = json.dumps({"error": {"code": 403, "message": text}}).encode()
        self.send_response(403)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = refuse  # noqa: N815

    def log_message(self, *args):
        pass


@pytest.fixture
def forbidden(monkeypatch):
    import fsspec
    from gcsfs.core import GCSFileSystem

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    GCSFileSystem.clear_instance_cache()
    yield Files("gs://bucket/store")
    GCSFileSystem.clear_instance_cache()
    server.shutdown()
    thread.join()
    server.server_close()


def test_forbidden_is_never_taken_for_not_there(forbidden, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"x")
    acts = {
        "read": [
            lambda: forbidden.read("a/b"),
            lambda: forbidden.read_versioned("a/b"),
            lambda: forbidden.exists("a/b"),
            lambda: forbidden.download("a/b", tmp_path / "target"),
        ],
        "list": [lambda: forbidden.list("a/b")],
        "write": [
            lambda: forbidden.write("a/b", b""),
            lambda: forbidden.create("a/b", b""),
            lambda: forbidden.upload(source, "a/b"),
            lambda: forbidden.compare_and_swap("a/b", None, b""),
            lambda: forbidden.compare_and_swap("a/b", "1", b""),
        ],
        "delete": [lambda: forbidden.delete("a/b"), lambda: forbidden.compare_and_delete("a/b", "1")],
    }
    for doing, calls in acts.items():
        for call in calls:
            with pytest.raises(StorageError) as caught:
                call()
            text = str(caught.value)
            assert f"no permission to {doing} object store/a/b in bucket bucket" in text
            assert "the principal lacks it" in text
            assert "does not have storage.objects access" in text
            assert "\n" not in text
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("error", "root", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/d/x"), "/d", "the disk is full (writing /d/x): free some"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "/d", "the disk is full (writing /d/a): free some space and run"),
        (PermissionError(errno.EACCES, "Permission denied", "/d/a"), "/d", "not writable: permission denied: /d/a; ch"),
        (OSError(errno.EIO, "Input/output error", "/d/a"), "/d", "could not write /d/a (input/output error); see to"),
        (OSError(errno.ENOSPC, "No space left on device", "/c/x"), "gs://b", "the disk is full (writing /c/x)"),
        (PermissionError(errno.EACCES, "Permission denied", "/c/x"), "gs://b", "the cache is not writable"),
        (TimeoutError(), "gs://b", "store gs://b: could not write a (TimeoutError); see to the network and run"),
        (RuntimeError("two\nlines"), "gs://b", "RuntimeError: two lines"),
    ],
)
def test_each_failure_is_one_line_with_its_remedy(error, root, expected):
    text = str(storage_error(error, root, "a", "write"))
    assert expected in text
    assert "\n" not in text


def test_missing_credentials_name_the_command():
    from google.auth.exceptions import DefaultCredentialsError

    text = str(storage_error(DefaultCredentialsError("none found"), "gs://b", "a", "read"))
    assert "no usable Google credentials; run `gcloud auth application-default login`" in text


def test_bugs_are_not_dressed_up_as_storage_errors():
    with pytest.raises(TypeError):
        Files("memory://x").write("a", object())
