"""Compare the files of a version with its manifest, before the version is used."""

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor

from tailorbird import storage
from tailorbird.registry.versions import PinnedVersion, RegistryError, parse_manifest, read_version
from tailorbird.storage import MANIFEST, s3
from tailorbird.storage.objects import NUM_TRANSFERS

EVIDENCE_FILES = (
    "evidence.json",
    "evidence_manifest.json",
    "protocol.json",
    "family.json",
    "report.html",
    "MODEL_CARD.md",
)


def version_faults(pinned: PinnedVersion, *, folder: str | None = None) -> list[str]:
    """Return the faults of a version's files, one sentence each; empty if they are exactly those
    that were registered.

    The manifest must have the pinned digest, and the files must be those of the manifest: no file
    may be changed, missing or additional. `folder` is the URI of a local copy; by default, the
    files in the registry are read. Evidence (`is_evidence`) is written after the registration and
    has a manifest of its own, so it is ignored. The parts of a hybrid are not checked.
    """
    folder = folder or pinned.uri
    if not storage.exists(f"{folder}/{MANIFEST}"):
        return [f"{pinned.uri}/{MANIFEST} is missing"]
    content = storage.read_bytes(f"{folder}/{MANIFEST}")
    if (digest := hashlib.sha256(content).hexdigest()) != pinned.digest:
        return [f"{pinned.uri}/{MANIFEST} was changed: its sha256 is {digest}, not {pinned.digest}"]
    expected = parse_manifest(content, uri=pinned.uri)
    base = f"{s3.parse(folder)[1]}/"
    present = {s3.parse(file)[1].removeprefix(base) for file in storage.list_files(folder)}
    faults = [f"{pinned.uri}/{name} is missing" for name in expected if name not in present]
    unknown = sorted(present - expected.keys() - {MANIFEST})
    faults += [
        f"{pinned.uri}/{name} is not in the manifest; it was added after the registration"
        for name in itertools.filterfalse(is_evidence, unknown)
    ]
    names = sorted(present & expected.keys())
    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        hashes = pool.map(lambda name: storage.sha256_object(f"{folder}/{name}"), names)
    for name, sha256 in zip(names, hashes, strict=True):
        if sha256 != expected[name].sha256:
            faults.append(
                f"{pinned.uri}/{name} was changed: its sha256 is {sha256}, not "
                f"{expected[name].sha256}"
            )
    return faults


def is_evidence(name: str) -> bool:
    """Return True for a file of a version's folder that the evidence of a run may
    contain."""
    return name in EVIDENCE_FILES or (name.startswith("predictions/") and name.endswith(".parquet"))


def require_intact(pinned: PinnedVersion, *, folder: str | None = None) -> None:
    """Raise RegistryError if a file of the version, or of a part of a hybrid, has a fault; see
    `version_faults`."""
    if faults := version_faults(pinned, folder=folder):
        raise RegistryError(
            f"{faults[0]} (faults: {len(faults)}); restore the version from a copy, and delete "
            "files that were added"
        )
    if folder is None and (hybrid := read_version(pinned.uri).hybrid):
        for part in hybrid.parts:
            require_intact(part)
