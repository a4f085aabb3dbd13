"""The declared application of a version: arguments, code and the configuration of the replicas."""

import pytest

from serving.app import BuildArgs, build
from serving.deploy.application import (
    AdditionalVersions,
    application_name,
    application_of,
    can_hold,
    is_baseline_served,
    replica_config,
    route_prefix,
)
from serving.deploy.serve_client import ChallengerError
from serving.deploy.serve_schema import ApplicationDetails
from tailorbird.config.serving import ChallengerConfig, ServingConfig
from tailorbird.registry.champion import ChosenBy
from tailorbird.registry.versions import Prompting
from tests.unit.serving.deploy.registered import registered

TASK = "s3://models/t"
CHOSEN_BY = ChosenBy(outcome="FINE_TUNE", sentence="FINE_TUNE: why", costs={"d": "2 CPU-seconds"})
CHAT = Prompting(system=None, max_new_tokens=8)
EXPERIMENT = ServingConfig(
    request_log="s3://logs/requests", challenger=ChallengerConfig(version="full-2", shadow=0.1)
)


def test_replicas_load_the_champion_and_the_additional_versions() -> None:
    champion, pretrained, lora = (registered(name) for name in ("full-1", "probe-1", "lora-1"))
    additional = AdditionalVersions(pretrained, registered("full-2"), (lora, champion))
    application = application_of(
        EXPERIMENT, task_uri=TASK, version=champion, additional=additional, verdict=CHOSEN_BY
    )
    # the challenger is not an argument: a new share restarts no replica
    assert application.args == {
        "task_uri": TASK,
        "task": "classification",
        "serving": {"request_log": EXPERIMENT.request_log},
    }
    config = replica_config(application)
    digests = {name: version.digest for name, version in config.versions.items()}
    assert digests == {
        "champion": "d-full-1",
        "lora-1": "d-lora-1",
        "baseline": "d-probe-1",
        "challenger": "d-full-2",
    }
    assert config.challenger is not None
    assert config.challenger.shadow == 0.1
    assert (config.verdict, config.costs) == (CHOSEN_BY.sentence, CHOSEN_BY.costs)


@pytest.mark.parametrize(
    ("baseline", "prompting", "served"),
    [
        ("probe-1", None, True),
        ("zero-shot-1", CHAT, False),
        ("nearest-1", CHAT, True),
        ("full-1", CHAT, True),  # the champion itself
        ("endpoint-zero-shot-1", None, False),
    ],
)
def test_a_chat_service_serves_a_baseline_only_without_a_further_language_model(
    baseline: str, prompting: Prompting | None, served: bool
) -> None:
    version = registered("full-1", prompting=prompting)
    additional = AdditionalVersions(registered(baseline).pinned)
    application = application_of(
        ServingConfig(), task_uri=TASK, version=version, additional=additional
    )
    assert set(replica_config(application).selectable) == ({"baseline"} if served else set())


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_chat_service_with_a_shared_base_model_serves_a_baseline_on_it(is_shared: bool) -> None:
    champion = registered("lora-1", prompting=CHAT).model_copy(update={"kind": "lora"})
    pretrained = registered("retrieved-1").pinned
    served = is_baseline_served(pretrained, champion=champion, shares_chat_base=is_shared)
    assert served == is_shared


@pytest.mark.parametrize(
    ("champion", "challenger", "without_gpu"),
    [
        ("endpoint-zero-shot-1", None, True),
        ("endpoint-zero-shot-1", "endpoint-few-shot-1", True),
        ("endpoint-zero-shot-1", "full-2", False),
        ("full-1", "endpoint-zero-shot-1", False),
    ],
)
def test_replicas_get_a_gpu_only_if_they_hold_a_model(
    champion: str, challenger: str | None, without_gpu: bool
) -> None:
    config = EXPERIMENT.model_copy(update={"gpus_per_replica": 1.0})
    additional = AdditionalVersions(challenger=registered(challenger) if challenger else None)
    application = application_of(
        config, task_uri=TASK, version=registered(champion), additional=additional
    )
    args = BuildArgs.model_validate(application.args)
    assert (args.without_gpu, args.serving.gpus_per_replica) == (without_gpu, 1.0)
    assert build(args)._bound_deployment.ray_actor_options["num_gpus"] == (0 if without_gpu else 1)
    assert can_hold(application, version=registered("full-2")) is not without_gpu
    assert can_hold(application, version=registered("endpoint-zero-shot-2"))
    assert (
        "without_gpu"
        not in application_of(ServingConfig(), task_uri=TASK, version=registered(champion)).args
    )


def test_a_version_by_other_code_cannot_be_a_challenger() -> None:
    additional = AdditionalVersions(challenger=registered("full-2", code="s3://models/code/b.zip"))
    with pytest.raises(ChallengerError):
        application_of(
            EXPERIMENT, task_uri=TASK, version=registered("full-1"), additional=additional
        )


def test_an_application_keeps_its_prefix_and_a_second_application_gets_its_name() -> None:
    def details(prefix: str) -> ApplicationDetails:
        return ApplicationDetails(status="RUNNING", route_prefix=prefix)

    assert application_name("s3://models/t/") == "t"
    assert route_prefix("t", {}) == "/"
    assert route_prefix("t", {"other": details("/")}) == "/t"
    assert route_prefix("t", {"other": details("/"), "t": details("/mine")}) == "/mine"
