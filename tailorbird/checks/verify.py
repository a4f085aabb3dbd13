"""After a run: whether the evidence at a URI is whole, and its predictions still give the verdict that it states."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from pyarrow import ArrowException

from cluster.code_snapshot import code_sha256, shipped_sha256
from tailorbird import PROJECT_ROOT, storage
from tailorbird.config.base import digest as digest_of
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.evaluation.gates.cost import CpuRounds
from tailorbird.evaluation.hybrid import fit_routing
from tailorbird.evaluation.prediction_store import load_predictions
from tailorbird.evaluation.predictions import Predictions, VerdictRefused, align
from tailorbird.evaluation.report.evidence import (
    UNREGISTERED,
    mean_measures,
    reliability_by_role,
    render_pages,
    role_at,
)
from tailorbird.evaluation.report.evidence_files import (
    MANIFEST,
    ROLES,
    VALIDATION,
    case_of,
    model_predictions,
    prediction_table_names,
)
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.inputs import CHANGED_SETS, VerdictInputs, require_valid_scores
from tailorbird.evaluation.verdict.protocol import (
    TestProtocol,
    build_protocol,
    evaluated_recipe,
    request_digest,
    run_name,
)
from tailorbird.evaluation.verdict.runtime_equivalence import ENGINE_EVIDENCE, evaluate_equivalence
from tailorbird.registry.test_set_ledger import read_looks
from tailorbird.registry.versions import read_version
from tailorbird.storage import s3
from tailorbird.storage.node_cache import sha256_files

TOLERANCE = 1e-9
"""Floats may differ by this much: another machine's libraries may add in another order."""
NEEDED = ("evidence.json", "question.json", "report.html", "MODEL_CARD.md")
ASKED = ("question", "asked", "recipe", "code", "data", "base_model", "champion")
"""What question.json must hold."""
UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, ArrowException)
"""What damaged JSON or Parquet may raise on being read as what it no longer is; a store that fails raises more."""


def verify_evidence(uri: str) -> tuple[str, ...]:
    """What is wrong with the evidence of a run or a version, a sentence a fault; empty where its verdict holds.

    Raises ValueError where nothing at the URI is evidence.
    """
    uri = uri.rstrip("/")
    if storage.exists(f"{uri}/{ENGINE_EVIDENCE}"):
        return _engine_faults(uri)
    if not any(storage.exists(f"{uri}/{name}") for name in (MANIFEST, "evidence.json")):
        raise ValueError(f"{uri} has neither {MANIFEST} nor evidence.json; give the URI of a finished run or a version")
    asked = _json(f"{uri}/question.json")
    chat = isinstance(asked, dict) and asked.get("recipe", {}).get("task") == "chat"
    faults = list(_file_faults(uri, needed=NEEDED, tables=prediction_table_names(changed=False, reference=not chat)))
    evidence = _json(f"{uri}/evidence.json")
    if not isinstance(evidence, dict):
        return (*faults, "evidence.json holds no evidence: the verdict cannot be recomputed")
    tables, unread = _tables(uri)
    faults += unread
    checks: tuple[Callable[[], Iterator[str]], ...] = (
        lambda: _question_faults(uri, evidence),
        lambda: _routing_faults(evidence, tables),
        lambda: _verdict_faults(evidence, tables),
        lambda: _look_faults(evidence),
        lambda: _version_faults(evidence),
        lambda: _base_model_faults(evidence["base_model"]),
        lambda: _code_faults(evidence["code"]),
    )
    for check in checks:
        try:
            faults += check()
        except s3.StorageError:
            raise  # the store's fault, not the evidence's
        except VerdictRefused as error:
            faults.append(f"the verdict is refused (rule 1): {error}")
        except UNREADABLE as error:
            faults.append(f"evidence.json is damaged: {type(error).__name__}: {error}")
    if faults and _other_code(evidence):
        faults.insert(0, f"this is not the code that decided: verify again with what lies at {evidence['code']['uri']}")
    return tuple(dict.fromkeys(faults))


def _other_code(evidence: Mapping[str, Any]) -> bool:
    code = evidence.get("code")
    return isinstance(code, dict) and {"sha256", "uri"} <= set(code) and code["sha256"] != code_sha256(PROJECT_ROOT)


def restore_pages(uri: str) -> tuple[str, ...]:
    """Writes report.html and MODEL_CARD.md again from evidence.json; returns the names of those that had changed.

    Raises ValueError where evidence.json is not what the manifest names: pages of it would look like evidence.
    """
    uri = uri.rstrip("/")
    if not storage.exists(f"{uri}/{MANIFEST}"):
        raise ValueError(f"{uri} has no {MANIFEST}; give the URI of a finished run or of a version")
    manifest, content = storage.read_json(f"{uri}/{MANIFEST}"), storage.read_bytes(f"{uri}/evidence.json")
    if hashlib.sha256(content).hexdigest() != manifest["evidence.json"]:
        raise ValueError(
            f"{uri}/evidence.json is not what {MANIFEST} names, so no page is made from it; run the recipe again"
        )
    evidence = json.loads(content)
    written = render_pages(evidence, role=role_at(uri, evidence=evidence))
    changed = [name for name, page in written.items() if _content(f"{uri}/{name}") != page]
    for name in changed:
        storage.write_bytes(f"{uri}/{name}", written[name])
    named = manifest | {name: hashlib.sha256(page).hexdigest() for name, page in written.items()}
    if named != manifest:  # the pages are written otherwise by now than when the run was concluded
        storage.write_bytes(f"{uri}/{MANIFEST}", json.dumps(named, indent=1).encode())
    return tuple(changed)


def _engine_faults(uri: str) -> tuple[str, ...]:
    """The record of what was exported for another engine, against its files and the answers beside it."""
    record = _json(f"{uri}/{ENGINE_EVIDENCE}")
    faults = list(_file_faults(uri, needed=(ENGINE_EVIDENCE,), tables=ROLES))
    tables, unread = _tables(uri)
    faults += unread
    try:
        question, cpu = TestProtocol.from_dict(record["question"]), record["measured"]["cpu"]
        rounds = CpuRounds(tuple(cpu["incumbent"]), tuple(cpu["candidate"]))
        faults += _against_the_run(record, tables)
        judged, exported = (model_predictions(role, tables) for role in ROLES)
        case = VerdictInputs(judged, exported, tables.get("reference"), question.test_sha256, cpu=rounds)
        again = json.loads(json.dumps(evaluate_equivalence(case, question=question).to_dict()))
        faults += _differences(record["found"], again, at="found", other="recomputed it is")
        faults += _differences(record["accepted"], again["accepted"], at="accepted", other="recomputed it is")
        faults += _registered_faults("the judged version", record["judged"]["uri"], digest=record["judged"]["digest"])
        faults += _registered_faults("the version", uri, digest=read_version(uri).digest)
        faults += _code_faults(record["code"])
    except s3.StorageError:
        raise
    except UNREADABLE as error:
        faults.append(f"{ENGINE_EVIDENCE} is damaged: {type(error).__name__}: {error}")
    return tuple(faults)


def _against_the_run(record: Mapping[str, Any], tables: Mapping[str, Predictions]) -> Iterator[str]:
    """What an engine's record takes from the run whose verdict is about the weights."""
    run = record["run"]
    evidence = _json(f"{run}/evidence.json")
    if not isinstance(evidence, dict):
        yield f"the run {run} that judged these weights is missing: nobody can tell what was asked"
        return
    yield from _differences(record["question"], evidence["question"], at="question", other=f"{run} asked")
    roles = [role for role, one in evidence["versions"].items() if one["digest"] == record["judged"]["digest"]]
    if not roles:
        yield f"the run {run} is not about the version {record['judged']['uri']}"
        return
    names = {f"incumbent{suffix}": f"{roles[0]}{suffix}" for suffix in ("", *(f"_{name}" for name in CHANGED_SETS))}
    for ours, theirs in {**names, "reference": "reference"}.items():
        if ours in tables and _stored(tables[ours]) != _stored(load_predictions(f"{run}/predictions/{theirs}.parquet")):
            yield f"predictions/{ours}.parquet is not what {run} has as {theirs}"


def _stored(table: Predictions) -> Any:
    """What two tables are compared by: the rows, whatever the model is called in them."""
    return table.to_table().replace_schema_metadata(None)


def _file_faults(uri: str, *, needed: tuple[str, ...], tables: tuple[str, ...]) -> Iterator[str]:
    """Files against the manifest: missing, changed, or foreign among the predictions."""
    manifest = _json(f"{uri}/{MANIFEST}")
    if not isinstance(manifest, dict):
        yield f"{MANIFEST} is missing, or no manifest: what the files were cannot be told"
        return
    for name in (*needed, *(f"predictions/{table}.parquet" for table in tables)):
        if name not in manifest:
            yield f"{name} is not named in {MANIFEST}"
    for name, told in manifest.items():
        content = _content(f"{uri}/{name}")
        if content is None:
            yield f"{name} is missing"
        elif (found := hashlib.sha256(content).hexdigest()) != told:
            yield f"{name} was changed: its sha256 is {found}, {MANIFEST} says {told}"
    for file in _list(f"{uri}/predictions"):
        name = f"predictions/{file.rpartition('/predictions/')[2]}"
        if name not in manifest:
            yield f"{name} is foreign: {MANIFEST} does not name it"


def _tables(uri: str) -> tuple[dict[str, Predictions], list[str]]:
    """The tables that can be read, by name, and a fault for each that cannot."""
    tables, faults = {}, []
    for file in _list(f"{uri}/predictions"):
        name = file.rpartition("/")[2].removesuffix(".parquet")
        try:
            tables[name] = load_predictions(file)
        except s3.StorageError:
            raise
        except UNREADABLE as error:
            faults.append(f"predictions/{name}.parquet cannot be read: {error}")
    return tables, faults


def _question_faults(uri: str, evidence: Mapping[str, Any]) -> Iterator[str]:
    """What was frozen before training against what the evidence says was asked."""
    asked = _json(f"{uri}/question.json")
    if not isinstance(asked, dict) or not set(ASKED) <= set(asked):
        yield "question.json is missing, or no question: what was asked before training cannot be told"
        return
    wanted = request_digest(asked)
    if asked["asked"] != wanted:
        yield f"question.json was changed: what it asks has the digest {wanted}, and it says {asked['asked']}"
    name = run_name(wanted, champion=asked["champion"])
    if evidence["run"].rpartition("/")[2] != name:
        yield f"{evidence['run']} is not the run of this question, whose name is {name}"
    hashes = {split: evidence["data"].get(f"sha256_{split}") for split in asked["data"]}
    said = {
        **evidence,
        "code": evidence["code"]["sha256"],
        "data": hashes,
        "recipe": evaluated_recipe(evidence["recipe"]),
    }
    told = {**asked, "recipe": evaluated_recipe(asked["recipe"])}
    for part in sorted(({*ASKED, "asked_by"} & set(told)) - {"asked"}):
        yield from _differences(said.get(part), told[part], at=part, other="question.json says")
    # A question that was eased afterwards, in both files.
    config = EvaluationConfig.model_validate(asked["recipe"]["evaluation"])
    rows = {name: evidence["question"][name] for name in ("test_sha256", "num_test_rows")}
    yield from _differences(
        evidence["question"], build_protocol(config, **rows).to_dict(), at="question", other="the recipe asks"
    )
    frozen = _json(f"{uri}/routing.json")
    if isinstance(frozen, dict):
        yield from _differences(evidence["routing"], frozen.get("routing"), at="routing", other="routing.json says")
    elif evidence["routing"] is not None:
        yield "routing.json is missing, or no routing: what was frozen on validation cannot be told"


def _routing_faults(evidence: Mapping[str, Any], tables: Mapping[str, Predictions]) -> Iterator[str]:
    """Who answers what in a hybrid, against what the answers to the validation rows speak for."""
    config = EvaluationConfig.model_validate(evidence["recipe"]["evaluation"]).hybrid
    answers = {role: tables[name] for role in ROLES if (name := f"{role}_{VALIDATION}") in tables}
    if len(answers) < len(ROLES):
        return  # named among the files already
    align(*answers.values())
    for table in answers.values():
        require_valid_scores(table)
    found = None
    if config is not None and evidence["versions"]["incumbent"]["kind"] != "hybrid":
        routing = fit_routing(config, **answers, metric=evidence["question"]["metric"])
        found = json.loads(json.dumps(asdict(routing))) if routing else None
    yield from _differences(evidence["routing"], found, at="routing", other="the validation rows give")


def _verdict_faults(evidence: Mapping[str, Any], tables: Mapping[str, Predictions]) -> Iterator[str]:
    """The verdict, and what the page draws of the predictions, against what they give now."""
    question = TestProtocol.from_dict(evidence["question"])
    needed = (*ROLES, "reference") if question.has_reference else ROLES
    missing = [name for name in needed if name not in tables]
    if missing:
        yield f"the verdict cannot be recomputed without predictions of: {', '.join(missing)}"
        return
    found = decide(case_of(evidence, tables), question=question)
    again: dict[str, Any] = {
        "verdict": json.loads(json.dumps(found.to_dict())),
        "reliability": reliability_by_role(tables),
        "measures": mean_measures(tables),
    }
    for name, value in again.items():
        yield from _differences(evidence[name], value, at=name, other="recomputed it is")
    scores = {"incumbent": "incumbent_score", "candidate": "candidate_score", "reference": "reference_score"}
    for place, row in enumerate(evidence["ladder"]):
        test = again["verdict"][scores[row["role"]]] if row["role"] else None
        yield from _differences(row["test"], test, at=f"ladder.{place}.test", other="recomputed it is")


def _look_faults(evidence: Mapping[str, Any]) -> Iterator[str]:
    """The look at test, and when the verdict expires, against the ledger of looks."""
    stated, task_uri = evidence["ledger"], evidence["run"].rpartition("/runs/")[0]
    looks = read_looks(task_uri, stated["test_rows"])
    found = next(
        (one for one in looks if (one.candidate, one.question) == (stated["candidate"], stated["question"])), None
    )
    if found is None:
        yield f"the ledger of looks at the test rows {stated['test_rows']} does not know this look"
        return
    entry = asdict(found) | {"test_rows": stated["test_rows"], "question": digest_of(evidence["question"])}
    yield from _differences(stated, entry, at="ledger", other="the ledger of looks says")
    yield from _differences(evidence["look"], found.look, at="look", other="the ledger of looks says")
    expires = datetime.fromisoformat(found.at) + timedelta(days=evidence["question"]["valid_days"])
    wanted = expires.isoformat(timespec="seconds")
    yield from _differences(evidence["expires_at"], wanted, at="expires_at", other="by the look at test it is")


def _base_model_faults(base_model: Mapping[str, Any]) -> Iterator[str]:
    """The recipe's pretrained model: its files against what they were when the question was asked."""
    uri = base_model["uri"]
    found = sha256_files(uri) if storage.exists(uri) else {}
    yield from _differences(base_model["files"], found, at=f"the base model {uri}", other="in the store")


def _version_faults(evidence: Mapping[str, Any]) -> Iterator[str]:
    """The models: of the registered ones each manifest's digest and files, of another what is left of its files."""
    for role, version in evidence["versions"].items():
        if version["digest"] != UNREGISTERED:
            yield from _registered_faults(f"the {role}", version["uri"], digest=version["digest"])
            continue
        for name, told in version["files"].items():
            if (found := _sha256(f"{version['uri']}/{name}")) not in (None, told):
                yield f"the {role}'s file {version['uri']}/{name} was changed: its sha256 is {found}, not {told}"


def _registered_faults(who: str, uri: str, *, digest: str) -> Iterator[str]:
    """A version's manifest and files, and those of both parts of a hybrid."""
    content = _content(f"{uri}/manifest.json")
    if content is None:
        yield f"{who} {uri} is missing: it has no manifest.json"
        return
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        yield f"{who} {uri} is not what was judged: its manifest.json has the digest {found}, not {digest}"
        return
    for name, told in json.loads(content).items():
        sha256 = _sha256(f"{uri}/{name}")
        if sha256 is None:
            yield f"{who}'s file {uri}/{name} is missing"
        elif sha256 != told["sha256"]:
            yield f"{who}'s file {uri}/{name} was changed: its sha256 is {sha256}, not {told['sha256']}"
    hybrid: dict[str, Any] = (_json(f"{uri}/config.json") or {}).get("hybrid") or {}
    for part in ROLES if hybrid else ():
        yield from _registered_faults(f"the {part} in {who}", hybrid[part]["uri"], digest=hybrid[part]["digest"])


def _code_faults(code: Mapping[str, str]) -> Iterator[str]:
    content = _content(code["uri"])
    if content is None:
        yield f"the code {code['uri']} is missing"
        return
    try:
        found = shipped_sha256(content)
    except ValueError as error:
        yield f"the code {code['uri']} was changed: {error}"
        return
    if found != code["sha256"]:
        yield f"the code {code['uri']} was changed: its files give the sha256 {found}, not {code['sha256']}"


def _differences(stated: Any, found: Any, *, at: str, other: str) -> Iterator[str]:
    """A sentence for each place in which two values of JSON differ."""
    if isinstance(stated, dict) and isinstance(found, dict):
        for name in sorted(set(stated) | set(found)):
            yield from _differences(
                stated.get(name, "missing"), found.get(name, "missing"), at=f"{at}.{name}", other=other
            )
    elif isinstance(stated, list) and isinstance(found, list) and len(stated) == len(found):
        for place, (ours, theirs) in enumerate(zip(stated, found, strict=True)):
            yield from _differences(ours, theirs, at=f"{at}.{place}", other=other)
    elif not _same(stated, found):
        yield f"{at} is {json.dumps(stated)} in evidence.json; {other} {json.dumps(found)}"


def _same(stated: Any, found: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (stated, found))
    if numbers:
        return math.isclose(stated, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(stated) is type(found) and stated == found


def _content(uri: str) -> bytes | None:
    return storage.read_bytes(uri) if storage.exists(uri) else None


def _json(uri: str) -> Any:
    """The value of a JSON object; None where it is not there, or no JSON."""
    try:
        return json.loads(_content(uri) or b"null")
    except ValueError:
        return None


def _sha256(uri: str) -> str | None:
    """Of an object that may be larger than memory; None where it is not there."""
    return storage.sha256_object(uri) if storage.exists(uri) else None


def _list(uri: str) -> list[str]:
    return storage.list_files(uri) if storage.exists(uri) else []
