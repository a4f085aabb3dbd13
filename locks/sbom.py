"""Write software bills of materials (CycloneDX JSON) of a wheel: `make sbom`.

The components are the packages in the lock of an image, with the sha256 of their files. Licenses
are those that the installed packages of the same version declare. Only the dependencies of the
wheel itself are listed as such.
"""

import hashlib
import re
import sys
import zipfile
from email import message_from_bytes
from email.message import Message
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from locks.generate import FOLDER, split_packages

IMAGES = ("cpu", "gpu")


def main() -> int:
    """Write the SBOM of each image next to the wheel."""
    (wheel,) = (Path(argument) for argument in sys.argv[1:])
    for image in IMAGES:
        lock = (FOLDER / f"{image}.txt").read_text(encoding="utf-8")
        path = wheel.with_name(f"{wheel.stem}.{image}.cdx.json")
        path.write_text(to_sbom(wheel, lock=lock), encoding="utf-8")
        print(path)
    return 0


def to_sbom(wheel: Path, *, lock: str) -> str:
    """Return the SBOM of a wheel with the packages of a lock, as JSON."""
    content = wheel.read_bytes()
    described, components = (
        wheel_metadata(wheel),
        [locked_component(text) for text in split_packages(lock)],
    )
    sha256 = hashlib.sha256(content).hexdigest()
    root = Component(
        name=described["Name"],
        version=described["Version"],
        type=ComponentType.APPLICATION,
        bom_ref=f"{described['Name']}=={described['Version']}",
        purl=PackageURL("pypi", name=described["Name"], version=described["Version"]),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
        licenses=declared_licenses(described),
    )
    bom = Bom(components=components, serial_number=uuid5(NAMESPACE_URL, sha256 + lock))
    bom.metadata.component = root
    direct = {
        canonicalize_name(Requirement(line).name) for line in described.get_all("Requires-Dist", [])
    }
    bom.register_dependency(
        root, [part for part in components if canonicalize_name(part.name) in direct]
    )
    return JsonV1Dot6(bom).output_as_string(indent=2)


def wheel_metadata(wheel: Path) -> Message:
    """Return the `METADATA` of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (
            name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)
        )
        return message_from_bytes(archive.read(name))


def locked_component(text: str) -> Component:
    """Return the component for a requirement of a lock."""
    requirement = Requirement(text.partition("\\")[0])
    name, version = requirement.name, str(requirement.specifier).removeprefix("==")
    hashes = [
        HashType(alg=HashAlgorithm.SHA_256, content=digest)
        for digest in re.findall(r"sha256:(\w+)", text)
    ]
    url = XsUri(f"https://pypi.org/project/{name}/{version}/#files")
    return Component(
        name=name,
        version=version,
        bom_ref=f"{name}=={version}",
        purl=PackageURL("pypi", name=canonicalize_name(name), version=version),
        licenses=installed_licenses(name, version=version),
        external_references=[
            ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=url, hashes=hashes)
        ],
    )


def installed_licenses(name: str, *, version: str) -> list[License | LicenseExpression]:
    """Return the licenses that the installed package declares; none if this version is not
    installed."""
    try:
        installed = metadata(name)
    except PackageNotFoundError:
        return []
    return declared_licenses(installed) if installed["Version"].partition("+")[0] == version else []


def declared_licenses(described: Message | PackageMetadata) -> list[License | LicenseExpression]:
    """Return the license in the metadata of a package: its SPDX expression or, without one, its
    name."""
    fields = [described[name] for name in ("License-Expression", "License") if name in described]
    text = next(filter(None, fields), "")
    return (
        [LicenseFactory().make_from_string(text)]
        if text and "\n" not in text and text != "UNKNOWN"
        else []
    )


if __name__ == "__main__":
    sys.exit(main())
