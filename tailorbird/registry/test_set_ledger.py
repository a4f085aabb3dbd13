"""Beside the registry: the ledger of looks at a test set, changed by conditional write so that none goes uncounted."""

import json
import random
import re
import time
from dataclasses import asdict, dataclass

from tailorbird.registry.versions import now
from tailorbird.storage import exists, list_files, read_bytes, read_versioned, write_if_match
from tailorbird.storage.s3 import Conflict, StorageError

NUM_ATTEMPTS = 50
WAIT_S = 0.2


@dataclass(frozen=True)
class Look:
    """An entry of the ledger."""

    look: int
    """Its number, from 1."""
    candidate: str
    question: str
    run: str
    """URI of the run that looked first."""
    at: str
    """When, ISO 8601."""


def look(task_uri: str, *, test_sha256: str, candidate: str, question: str, run: str) -> Look:
    """Enters this look at the test set; candidate and question again are no new look, and give the entry of then.

    `task_uri` is `<registry>/<name>`; `test_sha256` is `data.read.content_sha256` of the test rows; `candidate` names
    weights, so that the same weights by another engine keep their number; `question` is the digest of what is asked of
    them: who has seen the answer and asks anew, with another minimum gain or without a gate, looks once more. To be
    called before the candidate's first prediction: a run that dies after it has looked.
    Raises StorageError where the ledger cannot be read or written, ValueError for what is no sha256.
    """
    if not candidate:
        raise ValueError("candidate is empty; give what names its weights by their content, as a digest")
    uri = _uri(task_uri, test_sha256)
    for _ in range(NUM_ATTEMPTS):
        found = read_versioned(uri)
        looks = _entries(uri, found[0]) if found else []
        for entry in looks:
            if (entry.candidate, entry.question) == (candidate, question):
                return entry
        new = Look(len(looks) + 1, candidate, question, run, now())
        content = json.dumps([asdict(entry) for entry in (*looks, new)], indent=1).encode()
        try:
            write_if_match(uri, content, etag=found[1] if found else None)
        except Conflict:  # somebody looked meanwhile; or our own write, repeated by the client, was there already
            time.sleep(random.uniform(0, WAIT_S))
            continue
        return new
    raise StorageError(
        f"{uri} was changed by others at each of {NUM_ATTEMPTS} attempts; run again when fewer runs end at once"
    )


def read_looks(task_uri: str, test_sha256: str) -> list[Look]:
    """Every look at the test set, first to last; none before the first."""
    uri = _uri(task_uri, test_sha256)
    return _entries(uri, read_bytes(uri)) if exists(uri) else []


def num_other_sets(task_uri: str, test_sha256: str) -> int:
    """How many other sets of test rows were looked at under `task_uri`: fresh rows, or the same ones changed."""
    ledgers = list_files(f"{task_uri}/looks") if exists(f"{task_uri}/looks") else []
    return sum(uri != _uri(task_uri, test_sha256) for uri in ledgers)


def _uri(task_uri: str, test_sha256: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", test_sha256):
        raise ValueError(f"test_sha256 is {test_sha256!r}; give the 64 hexadecimal digits of the test rows' sha256")
    return f"{task_uri}/looks/{test_sha256}.json"


def _entries(uri: str, content: bytes) -> list[Look]:
    try:
        return [Look(**entry) for entry in json.loads(content)]
    except (ValueError, TypeError) as error:
        raise StorageError(f"{uri} is no ledger of looks: {error}; restore it, as no look may be forgotten") from None
