from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import node_probe
from cluster.node_probe import ProbeRequest, probe_node
from cluster.resources import NodeType, Resources


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return (tmp_path / "model").as_uri()


def test_a_report_lists_uris_that_cannot_be_read(tmp_path: Path, model: str) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "good.parquet")
    (tmp_path / "bad.parquet").write_text("text")
    good, bad, none = (f"{tmp_path.as_uri()}/{name}.parquet" for name in ("good", "bad", "none"))
    gone = (tmp_path / "elsewhere").as_uri()
    report = probe_node(
        ProbeRequest(
            (good, bad, none),
            task_uri="s3://",
            base_models=(model, gone),
            packages=("pytest", "no-such-package"),
        )
    )
    assert report.unread.keys() == {bad, none, gone}
    assert "Parquet" in report.unread[bad]
    assert report.packages["no-such-package"] is None
    assert report.packages["pytest"] == pytest.__version__
    assert report.written.fault is not None  # no S3 server


def test_the_head_node_of_a_ray_up_cluster_reports_its_node_types(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bootstrap.yaml"
    path.write_text(
        "{max_workers: 4, available_node_types: {gpu: {resources: {CPU: 8, GPU: 1}, max_workers: "
        "2}}}"
    )
    monkeypatch.setattr(node_probe, "BOOTSTRAP", path)
    assert probe_node(
        ProbeRequest((), task_uri="s3://", base_models=(model,), packages=())
    ).node_types == (NodeType("gpu", Resources(8, 1), 2, max_nodes_of_all_types=4),)
