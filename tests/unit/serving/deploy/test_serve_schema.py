"""The JSON of Serve's REST API is read by type, and sent back as it came."""

from typing import Any

from serving.deploy.serve_schema import ServeApplication, ServeInstance


def test_an_application_of_others_is_sent_back_as_it_came_but_for_what_serve_refuses() -> None:
    declared: dict[str, Any] = {
        "name": "theirs",
        "route_prefix": None,
        "import_path": "module:app",
        "external_scaler_enabled": False,
        "deployments": [{"name": "a", "user_config": [1, {"b": None}], "num_replicas": 2}, {"name": "c"}],
    }
    application = ServeApplication.model_validate(declared | {"host": "0.0.0.0", "port": 8000})
    assert application.to_json() == declared


def test_the_status_of_serve_before_it_starts_and_of_running_replicas() -> None:
    assert ServeInstance.model_validate({}).http_options is None
    replica = {"replica_id": "r", "state": "RUNNING", "pid": 7, "actor_name": "a"}
    details = {"status": "RUNNING", "deployments": {"chat": {"status": "HEALTHY", "replicas": [replica]}}}
    instance = ServeInstance.model_validate({"applications": {"t": details}, "proxies": {}})
    assert [replica.pid for replica in instance.applications["t"].replicas] == [7]
    assert instance.applications["t"].deployed_app_config is None
