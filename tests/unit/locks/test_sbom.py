"""The SBOM of a wheel is valid by the schema of CycloneDX and names the locked packages with their
hashes."""

import hashlib
import json
import zipfile
from importlib.metadata import metadata, version
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from locks.generate import FOLDER
from locks.sbom import IMAGES, to_sbom

METADATA = """Metadata-Version: 2.4
Name: tailorbird
Version: 0.2.0
License-Expression: Apache-2.0
Requires-Dist: ray[serve,train]<2.61,>=2.60
Requires-Dist: PyYAML>=6
Requires-Dist: mlflow-skinny>=3.1; extra == 'mlflow'
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "tailorbird-0.2.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tailorbird-0.2.0.dist-info/METADATA", METADATA)
    return path


@pytest.mark.parametrize("image", IMAGES)
def test_the_sbom_of_an_image_is_valid_and_names_every_locked_package(
    image: str, wheel: Path
) -> None:
    lock = (FOLDER / f"{image}.txt").read_text()
    text = to_sbom(wheel, lock=lock)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    sbom = json.loads(text)
    root = sbom["metadata"]["component"]
    assert (root["purl"], root["licenses"]) == (
        "pkg:pypi/tailorbird@0.2.0",
        [{"license": {"id": "Apache-2.0"}}],
    )
    assert root["hashes"] == [
        {"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}
    ]
    assert len(sbom["components"]) == sum("==" in line for line in lock.splitlines()) > 100
    (direct,) = (row["dependsOn"] for row in sbom["dependencies"] if row["ref"] == root["bom-ref"])
    assert {name.partition("==")[0] for name in direct} == {"ray", "pyyaml", "mlflow-skinny"}


def test_a_component_has_the_hashes_of_the_lock_and_the_license_of_the_installed_version(
    wheel: Path,
) -> None:
    digest = "a" * 64
    pins = ("packaging==0.0.0", f"packaging=={version('packaging')}")
    sbom = json.loads(
        to_sbom(wheel, lock="".join(f"{pin} \\\n    --hash=sha256:{digest}\n" for pin in pins))
    )
    other, installed = sorted(sbom["components"], key=lambda component: component["version"])
    assert other["purl"] == "pkg:pypi/packaging@0.0.0"
    assert other["externalReferences"][0]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert "licenses" not in other
    assert installed["licenses"] == [{"expression": metadata("packaging")["License-Expression"]}]
