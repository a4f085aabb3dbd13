from pathlib import Path

import pytest

from cluster import node_probe
from cluster.node_probe import probe_node


def test_a_report_has_the_memory_of_the_node_and_why_it_cannot_write() -> None:
    report = probe_node("s3://")
    assert report.memory_bytes >= report.free_bytes > 0
    assert report.written.fault is not None  # no S3 server


def test_a_node_without_a_package_of_the_training_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "training_without_a_package.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(node_probe, "TRAINING", "training_without_a_package")
    with pytest.raises(ImportError, match="no_such_package"):
        probe_node("s3://")
