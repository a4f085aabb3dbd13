"""Beside the registry: the ledger of looks at a test set, changed by conditional write so that none goes uncounted."""

import json
import random
import re
import time
from typing import Any

from cluster.storage import Conflict, StorageError, read_versioned, write_if_match
from models.registry import now

NUM_ATTEMPTS = 50
WAIT_S = 0.2


def look(home: str, *, test_sha256: str, candidate: str, question: str, run: str) -> int:
    """Enters this look at the test set and returns its number, from 1; candidate and question again are no new look.

    `home` is `<registry>/<name>`; `test_sha256` is `data.read.content_sha256` of the test rows; `candidate` names
    weights, so that the same weights by another engine keep their number; `question` is the digest of what is asked of
    them: who has seen the answer and asks anew, with another minimum gain or without a gate, looks once more. To be
    called before the candidate's first prediction: a run that dies after it has looked.
    Raises StorageError where the ledger cannot be read or written, ValueError for what is no sha256.
    """
    if not candidate:
        raise ValueError("candidate is empty; give what names its weights by their content, as a digest")
    uri = _uri(home, test_sha256)
    for _ in range(NUM_ATTEMPTS):
        found = read_versioned(uri)
        looks = _entries(uri, found[0]) if found else []
        for entry in looks:
            if (entry["candidate"], entry.get("question")) == (candidate, question):
                return int(entry["look"])
        number = len(looks) + 1
        looks.append({"look": number, "candidate": candidate, "question": question, "run": run, "at": now()})
        try:
            write_if_match(uri, json.dumps(looks, indent=1).encode(), etag=found[1] if found else None)
        except Conflict:  # somebody looked meanwhile; or our own write, repeated by the client, was there already
            time.sleep(random.uniform(0, WAIT_S))
            continue
        return number
    raise StorageError(
        f"{uri} was changed by others at each of {NUM_ATTEMPTS} attempts; run again when fewer runs end at once"
    )


def read_looks(home: str, test_sha256: str) -> list[dict[str, Any]]:
    """Every look at the test set, first to last, each `{look, candidate, question, run, at}`; none before the first."""
    uri = _uri(home, test_sha256)
    found = read_versioned(uri)
    return _entries(uri, found[0]) if found else []


def _uri(home: str, test_sha256: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", test_sha256):
        raise ValueError(f"test_sha256 is {test_sha256!r}; give the 64 hexadecimal digits of the test rows' sha256")
    return f"{home}/looks/{test_sha256}.json"


def _entries(uri: str, content: bytes) -> list[dict[str, Any]]:
    try:
        return list(json.loads(content))
    except ValueError as error:
        raise StorageError(f"{uri} is no ledger of looks: {error}; restore it, as no look may be forgotten") from None
