"""Artifacts get their config once, and are registered with the code of the run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tailorbird import storage
from tailorbird.config.endpoint import EndpointConfig
from tailorbird.data.fingerprints import fingerprints, load_fingerprints
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.evaluation.inference.predict import DecisionFit
from tailorbird.pipeline.artifacts import Contender, make_loadable, register_contender, set_decision
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.versions import (
    TRAINING_ROWS,
    ModelVersion,
    Prompting,
    VersionConfig,
    read_artifact_config,
)
from tests.build import version_config
from tests.unit.pipeline.contexts import context_of, recipe_at, splits_of

DATA = context_of(recipe_at(Path("/none")), splits_of()).inputs.data
CODE, OTHER_CODE = "s3://models/code.zip", "s3://models/other.zip"
HEAD = "head.safetensors"


def config_of(**fields: Any) -> VersionConfig:
    return version_config(kind="probe", classes=("a", "b"), **fields)


def registered(
    folder: Path,
    uri: str,
    *,
    code: str = CODE,
    limits: RequestLimits | None = None,
    num_train: int = 8,
) -> ModelVersion:
    data = context_of(recipe_at(folder), splits_of(num_train=num_train)).inputs.data
    limits = limits or RequestLimits()
    return register_contender((folder / "task").as_uri(), uri, code=code, limits=limits, data=data)


def content(uri: str, name: str = "config.json") -> bytes:
    return storage.read_bytes(f"{uri}/{name}")


@pytest.fixture
def contender(tmp_path: Path) -> Contender:
    """An artifact of an earlier run."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    save_file({"weight": np.ones((2, 2), np.float32)}, folder / HEAD)
    make_loadable(folder.as_uri(), config_of())
    return Contender("probe", folder.as_uri(), 0.5)


def test_an_artifact_of_an_earlier_run_is_registered_with_the_current_code_and_its_rows(
    tmp_path: Path, contender: Contender
) -> None:
    before = content(contender.uri)
    same, renewed = (registered(tmp_path, contender.uri, code=code) for code in (CODE, OTHER_CODE))
    assert (same.code, renewed.code) == (CODE, OTHER_CODE)
    assert same.digest != renewed.digest
    assert registered(tmp_path, same.uri, code=OTHER_CODE) == same  # as a champion
    assert content(contender.uri) == before
    assert not storage.exists(f"{contender.uri}/{TRAINING_ROWS}")
    texts = DATA.splits.train.texts + DATA.splits.validation.texts
    for version in (same, renewed):
        assert content(version.uri, HEAD) == content(contender.uri, HEAD)
        stored = load_fingerprints(f"{version.uri}/{TRAINING_ROWS}")
        np.testing.assert_array_equal(stored, np.sort(fingerprints(texts)))
        assert TRAINING_ROWS in storage.read_json(f"{version.uri}/manifest.json")


def test_an_endpoint_is_registered_with_the_limit_of_the_run_that_registers_it(
    tmp_path: Path,
) -> None:
    named = {"url": "https://host/v1", "model": "m", "prices": (1, 1)}
    endpoint = Endpoint.model_validate(named | {"max_spend": 5, "reported_model": "m"})
    prompting = Prompting(system="own", max_new_tokens=8)
    uri = (tmp_path / "artifact").as_uri()
    make_loadable(
        uri,
        config_of().model_copy(
            update={"kind": "endpoint_zero_shot", "endpoint": endpoint, "prompting": prompting}
        ),
    )
    versions = []
    for max_spend in (5, 50, None):
        config = EndpointConfig.model_validate(named | {"max_spend": max_spend})
        versions.append(registered(tmp_path, uri, limits=RequestLimits(named=(config,))))
    limits = [version.endpoint and version.endpoint.max_spend for version in versions]
    assert limits == [5, 50, None]
    stored = read_artifact_config(versions[1].uri).endpoint
    assert stored == endpoint.model_copy(update={"max_spend": 50})
    assert not storage.exists(f"{versions[0].uri}/{TRAINING_ROWS}")  # it learned from no rows
    # models are compared by the URI of the artifact
    assert read_artifact_config(uri).endpoint == endpoint


def test_a_version_of_another_task_is_copied_without_its_evidence_and_with_its_training_rows(
    tmp_path: Path, contender: Contender
) -> None:
    other = registered(tmp_path / "elsewhere", contender.uri)
    for name in ("evidence.json", "predictions/incumbent.parquet"):
        storage.write_bytes(f"{other.uri}/{name}", b"evidence")
    copy = registered(tmp_path, other.uri, code=OTHER_CODE, num_train=30)
    assert copy.uri.startswith(f"{tmp_path.as_uri()}/task/versions/probe-")
    assert copy.code == OTHER_CODE
    names = {file.removeprefix(f"{copy.uri}/") for file in storage.list_files(copy.uri)}
    assert names == {"config.json", HEAD, "manifest.json", TRAINING_ROWS}
    for name in (HEAD, TRAINING_ROWS):
        assert content(copy.uri, name) == content(other.uri, name)


def test_a_decision_is_stored_once_and_another_one_in_a_copy(contender: Contender) -> None:
    assert set_decision(contender, DecisionFit(1.4, (), 0.5)) == contender
    assert read_artifact_config(contender.uri) == config_of(temperature=1.4)
    before = content(contender.uri)
    # the next run on the same weights
    make_loadable(contender.uri, config_of(created_at="2030-01-01T00:00:00+00:00"))
    assert set_decision(contender, DecisionFit(1.4, (), 0.5)) == contender
    copy = set_decision(contender, DecisionFit(1.5, (), 0.5))
    assert set_decision(contender, DecisionFit(1.5, (), 0.5)) == copy != contender
    assert (copy.kind, copy.validation) == (contender.kind, contender.validation)
    assert content(contender.uri) == before
    assert read_artifact_config(copy.uri).temperature == 1.5
    assert content(copy.uri, HEAD) == content(contender.uri, HEAD)
    decided = set_decision(contender, DecisionFit(1.4, (0.5, 0.0), 0.6))
    assert decided.uri not in (contender.uri, copy.uri)
    assert decided.validation == 0.6
