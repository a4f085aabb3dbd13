"""Artifacts get their config once, and are registered with the code of the run."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tailorbird import storage
from tailorbird.evaluation.inference.predict import DecisionFit
from tailorbird.pipeline.artifacts import Contender, make_loadable, register_contender, set_decision
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.versions import (
    TRAINING_ROWS,
    Prompting,
    VersionConfig,
    read_artifact_config,
    write_artifact_config,
)
from tests.build import version_config
from tests.unit.pipeline.contexts import context_of, recipe_at, splits_of


def config_of(
    code: str = "s3://m/code/c.zip", created_at: str = "2026-01-01T00:00:00+00:00"
) -> VersionConfig:
    return version_config(kind="probe", classes=("a", "b"), code=code, created_at=created_at)


DATA = context_of(recipe_at(Path("/none")), splits_of()).inputs.data


def test_a_resumed_run_does_not_change_the_config(tmp_path: Path) -> None:
    uri = tmp_path.as_uri()
    make_loadable(uri, config_of())
    assert read_artifact_config(uri).temperature == 1
    set_decision(Contender("probe", uri, 0.5), DecisionFit(1.4, (), 0.5))
    before = storage.read_bytes(f"{uri}/config.json")
    make_loadable(
        uri, config_of(created_at="2030-01-01T00:00:00+00:00")
    )  # the next run on the same weights
    set_decision(Contender("probe", uri, 0.5), DecisionFit(1.4, (), 0.5))
    assert storage.read_bytes(f"{uri}/config.json") == before
    assert read_artifact_config(uri) == config_of().model_copy(update={"temperature": 1.4})


@pytest.fixture
def contender(tmp_path: Path) -> Contender:
    """An artifact of an earlier run with the code `c.zip`."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    save_file(
        {"weight": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)},
        folder / "head.safetensors",
    )
    write_artifact_config(folder.as_uri(), config_of())
    return Contender("probe", folder.as_uri(), 0.5)


def test_an_artifact_of_an_earlier_run_is_registered_with_the_current_code(
    tmp_path: Path, contender: Contender
) -> None:
    task_uri = (tmp_path / "task").as_uri()
    before = storage.read_bytes(f"{contender.uri}/config.json")
    same, renewed = (
        register_contender(
            task_uri, contender.uri, code=f"s3://m/code/{name}.zip", max_spend=None, data=DATA
        )
        for name in "cd"
    )
    assert (same.code, renewed.code) == ("s3://m/code/c.zip", "s3://m/code/d.zip")
    assert same.digest != renewed.digest
    assert storage.read_bytes(f"{contender.uri}/config.json") == before
    for version in (same, renewed):
        assert storage.read_bytes(f"{version.uri}/head.safetensors") == storage.read_bytes(
            f"{contender.uri}/head.safetensors"
        )


def test_an_endpoint_is_registered_with_the_limit_of_the_run_that_registers_it(
    tmp_path: Path,
) -> None:
    endpoint = Endpoint(
        url="https://host/v1",
        model="m",
        prices=(1, 1),
        max_spend=5,
        reported_model="m",
    )
    prompting = Prompting(system="own", max_new_tokens=8)
    fields = {"kind": "endpoint_zero_shot", "endpoint": endpoint, "prompting": prompting}
    write_artifact_config((tmp_path / "artifact").as_uri(), config_of().model_copy(update=fields))
    contender = Contender("endpoint_zero_shot", (tmp_path / "artifact").as_uri(), 0.5)
    task_uri, code = (tmp_path / "task").as_uri(), config_of().code
    versions = [
        register_contender(task_uri, contender.uri, code=code, max_spend=limit, data=DATA)
        for limit in (5, 50, None)
    ]
    assert [version.endpoint and version.endpoint.max_spend for version in versions] == [
        5,
        50,
        None,
    ]
    assert read_artifact_config(versions[1].uri).endpoint == endpoint.model_copy(
        update={"max_spend": 50}
    )
    assert not storage.exists(f"{versions[0].uri}/{TRAINING_ROWS}")  # it learned from no rows
    assert (
        read_artifact_config(contender.uri).endpoint == endpoint
    )  # models are compared by the URI of the artifact


def test_a_version_is_not_registered_again(tmp_path: Path, contender: Contender) -> None:
    version = register_contender(
        (tmp_path / "task").as_uri(),
        contender.uri,
        code="s3://m/code/c.zip",
        max_spend=None,
        data=DATA,
    )
    champion = Contender("champion", version.uri, 0.5)
    again = register_contender(
        (tmp_path / "task").as_uri(),
        champion.uri,
        code="s3://m/code/d.zip",
        max_spend=None,
        data=DATA,
    )
    assert again == version


def test_another_temperature_or_offset_is_stored_in_a_copy(contender: Contender) -> None:
    assert set_decision(contender, DecisionFit(1.4, (), 0.5)) == contender
    before = storage.read_bytes(f"{contender.uri}/config.json")
    copy = set_decision(contender, DecisionFit(1.5, (), 0.5))
    assert set_decision(contender, DecisionFit(1.5, (), 0.5)) == copy != contender
    assert (copy.kind, copy.validation) == (contender.kind, contender.validation)
    assert storage.read_bytes(f"{contender.uri}/config.json") == before
    assert read_artifact_config(copy.uri).temperature == 1.5
    decided = set_decision(
        contender, DecisionFit(1.4, (0.5, *[0.0] * (len(config_of().classes) - 1)), 0.6)
    )
    assert decided.uri not in (contender.uri, copy.uri)
    assert decided.validation == 0.6
    head = storage.read_bytes(f"{contender.uri}/head.safetensors")
    assert storage.read_bytes(f"{copy.uri}/head.safetensors") == head
