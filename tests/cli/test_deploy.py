import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cli import deploy
from nanocode_core.errors import UserError

SETTINGS = {
    "NANOCODE_STORE": "gs://bucket/store",
    "NANOCODE_IMAGES": "region-docker.pkg.dev/project/nanocode/",
    "NANOCODE_TAG": "0123456",
    "NANOCODE_ACCELERATOR": "v6e-16",
}


@pytest.fixture
def settings(monkeypatch):
    for name in (*deploy.PASSED_ON, "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def job(variables=None):
    """The Job that Prefect's worker makes of our template."""
    worker = pytest.importorskip("prefect_kubernetes.worker")
    from prefect.utilities.templating import apply_values

    template = deploy.template()
    defaults = {name: field.get("default") for name, field in template["variables"]["properties"].items()}
    values = {name: value for name, value in defaults.items() if value is not None} | (variables or {})
    made = worker.KubernetesWorkerJobConfiguration(**apply_values(template["job_configuration"], values))
    return made.job_manifest


def container(manifest):
    (only,) = manifest["spec"]["template"]["spec"]["containers"]
    return only


def test_a_flow_run_gets_the_settings_of_the_cluster(settings):
    made = job()
    assert made["metadata"]["namespace"] == "nanocode"
    assert container(made)["image"] == "region-docker.pkg.dev/project/nanocode/worker:0123456"
    assert deploy.template()["variables"]["properties"]["env"]["default"] == SETTINGS


def test_a_run_may_change_what_the_template_leaves_open(settings):
    made = container(job({"memory_limit": "4Gi"}))
    assert made["resources"] == {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}}


def test_every_variable_that_the_ui_shows_has_a_use(settings):
    template = deploy.template()
    text = str(template["job_configuration"])
    assert [name for name in template["variables"]["properties"] if f"{{{{ {name} }}}}" not in text] == []


def test_settings_that_a_cluster_needs_are_asked_for(settings):
    settings.delenv("NANOCODE_IMAGES")
    with pytest.raises(UserError, match="NANOCODE_IMAGES is not set"):
        deploy.template()
    settings.setenv("NANOCODE_STORE", "/somewhere")
    with pytest.raises(UserError, match=r"NANOCODE_STORE must be gs://bucket/prefix.*it is /somewhere"):
        deploy.template()


def test_a_missing_address_is_one_line(settings):
    with pytest.raises(UserError, match=r"^no Prefect server is known: set PREFECT_API_URL"):
        deploy.deploy("gke")
    with pytest.raises(UserError, match=r"^unknown work pool 'aws'; choose from local, gke"):
        deploy.deploy("aws")


class Other(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path.startswith("/page") else 404)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_):
        pass


@pytest.fixture
def other():
    """The address of a web server that is not Prefect's."""
    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_wrong_address_is_one_line(other):
    with pytest.raises(UserError, match=r"there is no Prefect API at .* its address ends with /api"):
        deploy.wait_for_server(f"{other}/api", 30)
    with pytest.raises(UserError, match="is no Prefect API"):
        deploy.wait_for_server(f"{other}/page", 30)
    with pytest.raises(UserError, match="PREFECT_API_URL is 'prefect-server:4200'"):
        deploy.wait_for_server("prefect-server:4200", 30)
    with pytest.raises(UserError, match=r"no Prefect server answered at http://127.0.0.1:1/api within 0 s \(.*refused"):
        deploy.wait_for_server("http://127.0.0.1:1/api", 0.2)
