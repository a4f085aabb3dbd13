"""The JSON of Serve's REST API is parsed into types and sent back unchanged."""

from typing import Any

from serving.deploy.serve_schema import ServeApplication, ServeInstance


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


def test_serves_status_is_parsed_before_its_start_and_with_running_replicas() -> None:
    assert ServeInstance.model_validate({}).http_options is None
    replica = {"replica_id": "r", "state": "RUNNING", "pid": 7, "actor_name": "a"}
    details = {
        "status": "RUNNING",
        "deployments": {"chat": {"status": "HEALTHY", "replicas": [replica]}},
    }
    instance = ServeInstance.model_validate({"applications": {"t": details}, "proxies": {}})
    assert [replica.pid for replica in instance.applications["t"].replicas] == [7]
    assert instance.applications["t"].deployed_app_config is None
