"""The application that Serve builds from its arguments."""

import pytest
from pydantic import ValidationError

from serving.app import BuildArgs, build
from serving.served_tasks import SERVED_TASKS
from tailorbird.config.serving import ServingConfig


@pytest.mark.parametrize("task", SERVED_TASKS)
def test_each_task_is_one_deployment_with_its_configuration_as_json(task: str) -> None:
    config = ServingConfig(max_batch_size=8, batch_prefixes=("s3://lake",))
    args = BuildArgs.model_validate(
        {"task_uri": "s3://models/t", "task": task, "serving": config.model_dump()}
    )
    bound = build(args)._bound_deployment
    assert bound.name == SERVED_TASKS[task].deployment
    task_uri, content = bound.init_args
    assert (task_uri, ServingConfig.model_validate_json(content)) == ("s3://models/t", config)


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ValidationError, match="newer"):
        BuildArgs.model_validate({"task_uri": "s3://models/t", "task": "chat", "newer": 1})
