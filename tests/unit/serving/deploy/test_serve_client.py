"""Serve's REST API: network exposure without API keys, and declared applications."""

from typing import Any

import pytest

from serving.deploy.serve_client import (
    DeployError,
    declared_in,
    listen_host,
    require_private_or_keys,
    serve_body,
)
from serving.deploy.serve_schema import (
    ApplicationDetails,
    HttpOptions,
    ServeApplication,
    ServeInstance,
)


@pytest.mark.parametrize(
    ("url", "listens", "public"),
    [
        ("http://127.0.0.1:8000", None, False),
        ("http://127.0.0.1:8000", "127.0.0.1", False),
        ("http://127.0.0.1:8000", "0.0.0.0", True),
        ("http://127.0.0.1:8000", "", True),
        ("http://10.0.0.5:8000", None, True),
    ],
)
def test_without_keys_a_deploy_that_other_machines_can_reach_is_refused(
    monkeypatch: pytest.MonkeyPatch, url: str, listens: str | None, public: bool
) -> None:
    monkeypatch.setenv("TAILORBIRD_SERVE_URL", url)
    # Serve does not return its default
    options = HttpOptions(host=listens) if listens else HttpOptions()
    instance = ServeInstance(http_options=None if listens is None else options)
    if not public:
        require_private_or_keys(instance)
        return
    with pytest.raises(DeployError):
        require_private_or_keys(instance)


def test_serve_listens_on_the_address_of_its_url() -> None:
    body = serve_body([], url="http://10.0.0.5:9000")
    assert body["http_options"] == {"host": "0.0.0.0", "port": 9000}
    assert listen_host("http://localhost") == "127.0.0.1"


def test_deleted_and_imperative_applications_are_not_put_again() -> None:
    application = ServeApplication(name="t")
    applications = {
        "kept": ApplicationDetails(status="RUNNING", deployed_app_config=application),
        "gone": ApplicationDetails(status="DELETING", deployed_app_config=application),
        "imperative": ApplicationDetails(status="RUNNING"),
    }
    assert declared_in(applications) == {"kept": application}


def test_a_foreign_application_is_sent_back_without_the_fields_that_serve_rejects() -> None:
    declared: dict[str, Any] = {
        "name": "theirs",
        "route_prefix": None,
        "import_path": "module:app",
        "external_scaler_enabled": False,
        "deployments": [
            {"name": "a", "user_config": [1, {"b": None}], "num_replicas": 2},
            {"name": "c"},
        ],
    }
    application = ServeApplication.model_validate(declared | {"host": "0.0.0.0", "port": 8000})
    assert application.to_json() == declared
