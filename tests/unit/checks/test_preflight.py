from dataclasses import replace
from typing import Any

import pytest

from cluster.node_probe import NodeReport, WriteCheck
from cluster.resources import Holder, Node, Resources
from tailorbird.checks import preflight, preflight_facts
from tailorbird.checks.doctor import GIB
from tailorbird.checks.preflight import check_facts
from tailorbird.checks.preflight_facts import (
    BaseModelFacts,
    Cluster,
    PreflightFacts,
    Table,
)
from tailorbird.checks.result import CheckResult, passes
from tailorbird.config.model_uri import ModelUri
from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.verdict.inputs import TrainedRows
from tailorbird.models.metadata import MetadataError, ModelMetadata
from tailorbird.models.shape import ModelShape
from tests.build import recipe

SHAPE = ModelShape(
    num_parameters=22_000_000,
    num_linear=10_000_000,
    num_linear_ends=30_000,
    hidden=384,
    intermediate=1536,
    num_layers=6,
    num_heads=12,
    vocabulary=30_522,
)
REPORT = NodeReport(
    written=WriteCheck(),
    memory_bytes=16 * GIB,
    free_bytes=12 * GIB,
    gpu_bytes=(),
)


def base_model(metadata: ModelMetadata | None, fault: str | None = None) -> BaseModelFacts:
    return BaseModelFacts(ModelUri("pypi", "x"), metadata, fault)


MODEL = ModelMetadata(
    "s3://m/_base/x", "bert", False, False, longest=512, shape=SHAPE, num_stored=22_000_000
)
CLUSTER = Cluster(
    nodes=(Node("1", "10.0.0.1", True, total=Resources(4), free=Resources(4)),),
    holders=(),
    reports={"1": REPORT},
    probe_errors={},
)
GOOD = PreflightFacts(
    unreachable=None,
    cluster=CLUSTER,
    tables=(Table("train", "s3://lake/rows", num_rows=100, num_files=1, num_read=1),),
    written=WriteCheck(),
    base_models=(base_model(MODEL),),
)


def on(cluster: Cluster, **changed: Any) -> PreflightFacts:
    return replace(GOOD, cluster=replace(cluster, **changed))


def nodes(*rooms: Resources, free: Resources | None = None) -> tuple[Node, ...]:
    numbered = enumerate(rooms, start=1)
    return tuple(
        Node(str(n), f"10.0.0.{n}", n == 1, total=room, free=free or room) for n, room in numbered
    )


def only_fault(facts: PreflightFacts, changed_recipe: Recipe | None = None) -> CheckResult:
    """Return the only fault, which must have a remedy; a fault of data has it in the message."""
    faults = [
        line for line in check_facts(changed_recipe or recipe(), facts) if line.state == "fault"
    ]
    assert len(faults) == 1, faults
    assert faults[0].remedy or any(faults[0].message == table.fault for table in facts.tables)
    return faults[0]


@pytest.mark.parametrize("unreachable", [None, "Ray is not reachable at x:1"])
def test_without_a_cluster_everything_else_is_checked(unreachable: str | None) -> None:
    facts = replace(GOOD, cluster=None, unreachable=unreachable)
    lines = check_facts(recipe(), facts)
    faults = [(line.name, line.message) for line in lines if line.state == "fault"]
    assert faults == ([] if unreachable is None else [("Ray", unreachable)])
    assert [line.name for line in lines if line.state != "fault"] == [
        *("data.train", "registry", "base model", "nodes")
    ]
    assert not passes(check_facts(recipe(), replace(facts, written=WriteCheck(fault="denied"))))


CHAT = {"task": "chat", "evaluation": {"metric": "rouge_l"}}
TWO_TRIALS = {"tuning": {"max_concurrent_trials": 3, "num_trials": 4}}
ELASTIC = {"training": {"num_workers": (1, 4), "batch_size": 24}}
LARGE_WORKERS = {"training": {"cpus_per_worker": 3}}
ON_GPU = {"training": {"gpus_per_worker": 1, "num_workers": 1}}
REPLICA_ON_GPU = {"serving": {"gpus_per_replica": 1, "cpus_per_replica": 4}}
SMALL = nodes(Resources(1))
BUSY = nodes(Resources(4), free=Resources(1))
REPORTS = {"1": REPORT, "2": REPORT}


def with_model(**changed: Any) -> PreflightFacts:
    return replace(GOOD, base_models=(base_model(replace(MODEL, **changed)),))


def with_report(**changed: Any) -> PreflightFacts:
    return on(CLUSTER, reports={"1": replace(REPORT, **changed)})


@pytest.mark.parametrize(
    ("facts", "sections", "name", "part"),
    [
        (
            replace(GOOD, tables=(*GOOD.tables, Table("test", "s3://l/x", fault="no column"))),
            {},
            "data.test",
            "no column",
        ),
        (
            replace(GOOD, tables=(replace(GOOD.tables[0], num_rows=600_000),)),
            {},
            "data.validation",
            "600,000 training rows are streamed",
        ),
        (replace(GOOD, written=WriteCheck(fault="there is no bucket")), {}, "registry", "bucket"),
        (
            replace(GOOD, written=WriteCheck(refuses_second=False)),
            {},
            "registry",
            "ignores If-None-Match,",
        ),
        (
            replace(GOOD, written=WriteCheck(refuses_stale=False)),
            {},
            "registry",
            "ignores If-Match,",
        ),
        (
            with_report(written=WriteCheck(fault="access denied")),
            {},
            "node 10.0.0.1",
            "access denied",
        ),
        (
            on(
                CLUSTER,
                nodes=nodes(Resources(4), Resources(4)),
                probe_errors={"2": "no answer within 60 s"},
            ),
            {},
            "node 10.0.0.2",
            "no answer within 60 s",
        ),
        (
            with_model(longest=128),
            {"data": {"train": "s3://l/r", "max_length": 256}},
            "base model",
            "256 is more than 128 tokens",
        ),
        (with_model(num_stored=5_000_000), {}, "base model", "5,000,000 of 22,000,000 parameters"),
        (
            with_model(is_encoder_decoder=True, kind="t5"),
            {},
            "base model",
            "an encoder with a decoder",
        ),
        (GOOD, CHAT, "base model", "is a bert, not a causal language model"),
        (
            with_model(is_causal=True, template_error="no chat template"),
            CHAT,
            "base model",
            "no chat template",
        ),
        (on(CLUSTER, nodes=SMALL), {}, "workers", "the cluster has room for 1"),
        (
            on(CLUSTER, nodes=nodes(Resources(2), Resources(2)), reports=REPORTS),
            LARGE_WORKERS,
            "workers",
            "the largest node has 2 CPUs",
        ),
        (GOOD, ON_GPU, "workers", "the largest node has 4 CPUs"),
        (GOOD, REPLICA_ON_GPU, "evaluation", "needs 4 CPUs and 1 GPU"),
        (
            on(CLUSTER, nodes=BUSY, holders=(Holder("replica of icd10", Resources(3)),)),
            {},
            "free now",
            "used by replica of icd10 (3 CPUs)",
        ),
        (
            on(CLUSTER, nodes=BUSY, holders=None),
            {},
            "free now",
            "the dashboard does not answer",
        ),
    ],
)
def test_what_would_make_a_run_fail_or_wait_is_the_only_fault(
    facts: PreflightFacts, sections: dict[str, Any], name: str, part: str
) -> None:
    line = only_fault(facts, recipe(**sections))
    assert line.name == name
    assert part in line.message


@pytest.mark.parametrize(
    ("facts", "sections", "name", "state", "part"),
    [
        (
            on(CLUSTER, nodes=nodes(Resources(4), Resources(4, 1)), reports=REPORTS),
            REPLICA_ON_GPU,
            "evaluation",
            "ok",
            "1 GPU",
        ),
        (
            on(CLUSTER, nodes=nodes(Resources(2))),
            ELASTIC,
            "workers",
            "ok",
            "training uses the 2 of 4 that fit",
        ),
        (GOOD, TWO_TRIALS, "trials", "note", "is 3, but only 2 fit"),
    ],
)
def test_what_does_not_stop_a_run_is_no_fault(
    facts: PreflightFacts, sections: dict[str, Any], name: str, state: str, part: str
) -> None:
    lines = check_facts(recipe(**sections), facts)
    assert passes(lines)
    (line,) = [line for line in lines if line.name == name]
    assert line.state == state
    assert part in line.message


def test_without_a_base_model_memory_is_not_estimated() -> None:
    lines = check_facts(
        recipe(), replace(GOOD, base_models=(base_model(None, "cannot be downloaded"),))
    )
    faults = {line.name: line.message for line in lines if line.state == "fault"}
    assert faults.keys() == {"base model", "memory"}
    assert faults["base model"] == "cannot be downloaded"


def test_test_rows_that_the_champion_was_trained_on_are_a_note_or_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("too few other rows; add test rows")

    trained = TrainedRows({"incumbent": tuple("123456789")})
    monkeypatch.setattr(preflight_facts, "read_champion", lambda _: ("champion", "etag"))
    monkeypatch.setattr(preflight_facts, "champion_version", lambda _: "version")
    monkeypatch.setattr(preflight_facts, "read_test", lambda *_, **__: range(90))
    monkeypatch.setattr(preflight_facts, "trained_rows", lambda *_: trained)
    (line,) = preflight_facts.trained_rows_findings(recipe())
    assert line.state == "note"
    assert line.message.startswith("the incumbent was trained on 9 of the 90 test rows")
    assert line in check_facts(recipe(), replace(GOOD, findings=(line,)))
    monkeypatch.setattr(preflight_facts, "require_enough_rows", refuse)
    (line,) = preflight_facts.trained_rows_findings(recipe())
    assert (line.state, line.message) == ("fault", "too few other rows; add test rows")


def test_equal_faults_of_several_nodes_are_reported_once() -> None:
    denied = replace(REPORT, written=WriteCheck(fault="access denied"))
    line = only_fault(
        on(CLUSTER, nodes=nodes(Resources(4), Resources(4)), reports={"1": denied, "2": denied})
    )
    assert line.name == "node 10.0.0.1, 10.0.0.2"
    assert "that Ray was started with" in line.remedy


def test_an_encoder_for_retrieval_that_cannot_be_used_is_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MetadataError("pypi://x is no text model; omit the field")

    monkeypatch.setattr(preflight_facts, "stage_base_model", refuse)
    chat = {"task": "chat", "evaluation": {"metric": "rouge_l", "retrieval_encoder": "pypi://x"}}
    (line,) = preflight_facts.encoder_findings(recipe(**chat))
    assert (line.name, line.state) == ("retrieval encoder", "fault")
    assert line.message == "pypi://x is no text model; omit the field"


def test_the_rows_are_read_as_a_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Recipe) -> None:
        raise ValueError("train has no rows left")

    monkeypatch.setattr(preflight, "collect_facts", lambda *_, **__: GOOD)
    expected = {"not read, because the training rows are streamed": lambda _: None}
    for message, inspect_rows in (expected | {"train has no rows left": refuse}).items():
        monkeypatch.setattr(preflight, "inspect_rows", inspect_rows)
        results = {line.name: line for line in preflight.check_recipe(recipe())}
        assert results["rows"].message == message
        assert passes(tuple(results.values())) == (message in expected)
