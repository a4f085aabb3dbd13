"""Serve's REST API: who may reach the service, and what is declared."""

import pytest

from serving.deploy.serve_client import DeployError, declared_in, listen_host, require_private_or_keys, serve_body
from serving.deploy.serve_schema import ApplicationDetails, HttpOptions, ServeApplication, ServeInstance


@pytest.mark.parametrize(
    ("url", "listens", "public"),
    [
        ("http://127.0.0.1:8000", None, False),
        ("http://127.0.0.1:8000", "127.0.0.1", False),
        ("http://localhost:8000", "127.0.0.1", False),
        ("http://127.0.0.1:8000", "0.0.0.0", True),
        ("http://127.0.0.1:8000", "", True),
        ("http://10.0.0.5:8000", None, True),
        ("http://serve.example:8000", "0.0.0.0", True),
    ],
)
def test_without_keys_nothing_is_deployed_where_other_machines_may_ask(
    monkeypatch: pytest.MonkeyPatch, url: str, listens: str | None, public: bool
) -> None:
    monkeypatch.setenv("TAILORBIRD_SERVE_URL", url)
    options = HttpOptions(host=listens) if listens else HttpOptions()  # Serve does not return its default
    instance = ServeInstance(http_options=None if listens is None else options)
    if not public:
        require_private_or_keys(instance)
        return
    with pytest.raises(DeployError, match=r"serving\.api_keys is not set: `tailorbird key NAME` makes a key"):
        require_private_or_keys(instance)


def test_serve_listens_where_clients_call_it() -> None:
    application = ServeApplication(name="t", route_prefix="/")
    body = serve_body([application], url="http://10.0.0.5:9000")
    assert body["http_options"] == {"host": "0.0.0.0", "port": 9000}
    assert body["applications"] == [{"name": "t", "route_prefix": "/"}]
    assert listen_host("http://localhost") == "127.0.0.1"


def test_an_application_that_is_deleted_or_was_not_declared_is_not_put_again() -> None:
    application = ServeApplication(name="t")
    applications = {
        "kept": ApplicationDetails(status="RUNNING", deployed_app_config=application),
        "gone": ApplicationDetails(status="DELETING", deployed_app_config=application),
        "imperative": ApplicationDetails(status="RUNNING"),
    }
    assert declared_in(applications) == {"kept": application}
