"""A service with a disruption budget always has a node that can be drained."""

import pytest
import yaml

from tailorbird.release.kube_documents import RenderError
from tailorbird.release.manifests import ServedChampion, render_manifest
from tests.k8s.manifests import of_kind, text_of
from tests.unit.release.test_manifests import DRAINABLE, recipe, rendered


@pytest.fixture(autouse=True)
def _served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace Serve's configuration, which needs a registry and is tested with a real S3 server."""
    monkeypatch.setattr(
        "tailorbird.release.manifests._serve_config", lambda *_, **__: ServedChampion({})
    )


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (
            ("serving.autoscaling.min_replicas=1",),
            "serving.autoscaling.min_replicas=2 and serving.autoscaling.max_replicas_per_node=1",
        ),
        # Two replicas fit one pod of four cores, and Serve may put them there.
        (
            DRAINABLE[:2],
            "serving.autoscaling.min_replicas=2 and serving.autoscaling.max_replicas_per_node=1",
        ),
        (
            ("serving.autoscaling.min_replicas=4", "serving.autoscaling.max_replicas=4"),
            "serving.autoscaling.max_replicas_per_node=3",
        ),
    ],
)
def test_a_service_whose_nodes_could_never_be_drained_is_refused(
    overrides: tuple[str, ...], remedy: str
) -> None:
    with pytest.raises(RenderError, match=f"so no node could be drained; set .*{remedy}"):
        rendered("rayservice", *overrides, part="prod/service")


@pytest.mark.parametrize(
    ("overrides", "bounds"),
    [
        (DRAINABLE, (2, 4)),  # each pod has one replica; one more is for a candidate
        (
            (
                "serving.autoscaling.min_replicas=2",
                "serving.autoscaling.max_replicas=3",
                "serving.cpus_per_replica=4",
            ),
            (2, 4),
        ),
        (
            (
                "serving.autoscaling.min_replicas=4",
                "serving.autoscaling.max_replicas=8",
                "serving.autoscaling.max_replicas_per_node=3",
            ),
            (2, 3),
        ),
        (("serving.autoscaling.min_replicas=5", "serving.autoscaling.max_replicas=5"), (2, 2)),
    ],
)
def test_a_service_on_several_nodes_keeps_its_budget(
    overrides: tuple[str, ...], bounds: tuple[int, int]
) -> None:
    documents = rendered("rayservice", *overrides, part="prod/service")
    (service,), (budget,) = (
        of_kind(documents, "RayService"),
        of_kind(documents, "PodDisruptionBudget"),
    )
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == bounds
    assert budget["metadata"]["name"] == "serving-workers-icd10-chapters"


def test_in_staging_one_replica_may_be_interrupted_and_the_head_must_be_released_by_hand() -> None:
    done = render_manifest(
        recipe("serving.autoscaling.min_replicas=1"),
        to="rayservice",
        base=text_of("staging/service"),
    )
    (budget,) = of_kind(list(yaml.safe_load_all(done.text)), "PodDisruptionBudget")
    assert budget["metadata"]["name"] == "serving-head-icd10-chapters"
    (note,) = done.notes
    assert note.startswith(
        "the PodDisruptionBudget serving-head-icd10-chapters refuses to evict the head"
    )
