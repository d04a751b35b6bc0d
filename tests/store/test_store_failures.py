import errno

import pytest
from faults import PRINCIPAL
from google.auth import compute_engine, credentials, identity_pool
from google.oauth2 import credentials as user_credentials
from google.oauth2 import service_account

from nanocode_core.errors import StorageError
from nanocode_core.store import Files
from nanocode_core.store.failures import storage_error
from nanocode_core.store.principal import name_of


@pytest.mark.parametrize(
    ("told", "who"),
    [
        (f"{PRINCIPAL} does not have storage.objects.get access to the Google Cloud Storage object.", PRINCIPAL),
        ("Anonymous caller does not have storage.objects.get access to the object.", "an anonymous caller"),
        ("Caller does not have storage.objects.get access to the object.", "an anonymous caller"),  # as here
        ("Access denied.", "an anonymous caller"),
    ],
)
@pytest.mark.parametrize("of", ["object", "bucket"])
def test_forbidden_is_never_taken_for_not_there(faulty, tmp_path, told, who, of):
    faulty.refuse("bucket/store/a/b" if of == "object" else "bucket/", message=told)
    forbidden = Files("gs://bucket/store")
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
            what = "objects below store/a/b" if doing == "list" else "object store/a/b"
            text = str(caught.value)
            assert f"{who} has no permission to {doing} {what} in bucket bucket" in text
            assert "\n" not in text
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("holder", "name"),
    [
        (None, "an anonymous caller"),
        (credentials.AnonymousCredentials(), "an anonymous caller"),
        (service_account.Credentials(None, PRINCIPAL, "https://oauth2.googleapis.com/token"), PRINCIPAL),
        (compute_engine.Credentials(PRINCIPAL), PRINCIPAL),
        (compute_engine.Credentials(), "this machine's service account"),
        (compute_engine.Credentials("my-project.svc.id.goog"), "service account (Workload Identity of my-project.svc"),
        (user_credentials.Credentials("token"), "the account of `gcloud auth application-default login`"),
        (user_credentials.Credentials("token", account="ada@example.com"), "ada@example.com"),
        (
            identity_pool.Credentials(
                "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
                "urn:ietf:params:oauth:token-type:jwt",
                "https://sts.googleapis.com/v1/token",
                {"file": "/token"},
            ),
            "a federated identity of iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/prov",
        ),
    ],
)
def test_credentials_have_a_name(holder, name):
    assert name in name_of(holder)


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
