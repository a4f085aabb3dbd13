"""Verify that the evidence of a run or a version is complete and its predictions give the stored
verdict."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta

from tailorbird import PROJECT_ROOT, storage
from tailorbird.checks import verify_files
from tailorbird.checks.differences import differences, read_content, read_value
from tailorbird.config.base import digest
from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.baselines.baseline import Baseline, other_baselines
from tailorbird.evaluation.hybrid import fit_hybrid, roles_on_validation
from tailorbird.evaluation.predictions import Predictions, VerdictRefused, align
from tailorbird.evaluation.report import evidence_files
from tailorbird.evaluation.report.evidence import (
    EVIDENCE_FILE,
    FAMILY_FILE,
    ROLES,
    Evidence,
)
from tailorbird.evaluation.report.evidence_files import MANIFEST, VALIDATION
from tailorbird.evaluation.report.model_scores import figures, model_scores
from tailorbird.evaluation.report.preregistration import (
    PROTOCOL_FILE,
    Preregistration,
    evaluated_recipe,
    request_digest,
    run_name,
)
from tailorbird.evaluation.statistics.headroom import headroom_of
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.evaluation.verdict.decide import ANCHOR
from tailorbird.evaluation.verdict.inputs import (
    SUITE_PREFIX,
    require_valid_scores,
)
from tailorbird.evaluation.verdict.protocol import VALID_DAYS, build_protocol
from tailorbird.evaluation.verdict.reach import reach_verdict
from tailorbird.registry.test_set_ledger import recount_access
from tailorbird.storage import s3
from tailorbird.storage.code_files import code_sha256, runtime_files
from tailorbird.storage.paths import parse_run_uri

NEEDED = (EVIDENCE_FILE, PROTOCOL_FILE, FAMILY_FILE, *evidence_files.PAGES)
Part = tuple[str, object, object]
"""The path of a part of the evidence, its stated value and the value that it must have."""


def verify_evidence(uri: str) -> tuple[str, ...]:
    """Return the faults in the evidence of a run or a version, one sentence each; empty if its
    verdict holds.

    Raises ValueError if there is no evidence at the URI.
    """
    uri = uri.rstrip("/")
    if not any(storage.exists(f"{uri}/{name}") for name in (MANIFEST, EVIDENCE_FILE)):
        missing = f"{uri} has neither {MANIFEST} nor {EVIDENCE_FILE}"
        raise ValueError(f"{missing}; give the URI of a finished run or a version")
    stored = read_value(f"{uri}/{EVIDENCE_FILE}")
    try:
        evidence = Evidence.model_validate(stored)
    except ValueError as error:
        files = verify_files.file_faults(uri, needed=NEEDED, tables=ROLES)
        return (*files, f"{EVIDENCE_FILE} is damaged, so the verdict cannot be recomputed: {error}")
    roles = [model.role for model in evidence.family.models]
    if evidence.family.anchor is not None and not evidence.family.anchor.problem:
        roles.append(ANCHOR)
    names = (*roles, *(f"{role}_{VALIDATION}" for role in _validation_roles(evidence)))
    faults = list(verify_files.file_faults(uri, needed=NEEDED, tables=names))
    tables, unreadable = verify_files.load_readable_tables(uri)
    faults += unreadable
    subjects = [evidence.run, *(version.uri for version in evidence.versions.values())]
    if uri not in subjects:
        faults.append(f"this is the evidence of {', '.join(subjects)}, not of {uri}")
    with damage_as_fault(EVIDENCE_FILE, faults):
        faults += _differences(_parts(stored, uri, evidence=evidence, tables=tables))
    with damage_as_fault(EVIDENCE_FILE, faults):
        faults += verify_files.trained_rows_faults(evidence)
        faults += verify_files.evaluated_faults(evidence)
        for base_model in evidence.base_models:
            faults += verify_files.model_faults(base_model, what="base model")
        faults += verify_files.model_faults(evidence.retrieval_encoder, what="retrieval encoder")
        faults += verify_files.code_faults(evidence.code)
    if faults and evidence.code.sha256 != code_sha256(runtime_files(PROJECT_ROOT)):
        faults.insert(
            0, f"this is not the code of the run: verify again with the code at {evidence.code.uri}"
        )
    return tuple(dict.fromkeys(faults))


@contextmanager
def damage_as_fault(file: str, faults: list[str]) -> Iterator[None]:
    """Add a fault if the block cannot read or recompute evidence that a file contains."""
    try:
        yield
    except s3.StorageError:
        raise  # a fault of the storage, not of the evidence
    except VerdictRefused as error:
        faults.append(f"the verdict is refused: {error}")
    except verify_files.UNREADABLE as error:
        faults.append(f"{file} cannot be verified: {type(error).__name__}: {error}")


def restore_pages(uri: str) -> tuple[str, ...]:
    """Rewrite report.html and MODEL_CARD.md from evidence.json; return the names of the files that
    changed.

    Raises ValueError if evidence.json does not match the manifest, because its pages would look
    like evidence.
    """
    uri = uri.rstrip("/")
    if not storage.exists(f"{uri}/{MANIFEST}"):
        raise ValueError(f"{uri} has no {MANIFEST}; give the URI of a finished run or of a version")
    try:
        evidence = evidence_files.read_evidence(uri)
    except ValueError as error:
        raise ValueError(f"cannot render the pages: {error}; run the recipe again") from None
    pages = evidence_files.render_pages(evidence, role=evidence.role_of(uri))
    changed = [name for name, page in pages.items() if read_content(f"{uri}/{name}") != page]
    for name in changed:
        storage.write_bytes(f"{uri}/{name}", pages[name])
    manifest = storage.read_json(f"{uri}/{MANIFEST}")
    updated = manifest | {name: hashlib.sha256(page).hexdigest() for name, page in pages.items()}
    if updated != manifest:  # this code renders other pages than the code that wrote the evidence
        storage.write_bytes(f"{uri}/{MANIFEST}", json.dumps(updated, indent=1).encode())
    return tuple(changed)


def _differences(parts: Iterator[Part]) -> Iterator[str]:
    for path, stated, expected in parts:
        yield from differences(stated, expected, at=path, other="it must be")


def _parts(
    stored: object, uri: str, *, evidence: Evidence, tables: Mapping[str, Predictions]
) -> Iterator[Part]:
    """Yield the parts of the evidence with their values from the registration, the frozen family,
    the predictions and the test-set ledger."""
    yield "", stored, evidence
    yield from _registered_parts(uri, evidence=evidence)
    yield from _test_access_parts(evidence)
    yield from _family_parts(uri, evidence=evidence)
    yield from _validation_parts(evidence, tables=tables)
    yield from _verdict_parts(evidence, tables=tables)


def _registered_parts(uri: str, *, evidence: Evidence) -> Iterator[Part]:
    """Yield the parts that were registered before training."""
    registration = Preregistration.model_validate(read_value(f"{uri}/{PROTOCOL_FILE}"))
    recipe = registration.recipe
    sha256 = request_digest(registration)
    yield f"the digest of the request in {PROTOCOL_FILE}", registration.request_sha256, sha256
    name = run_name(sha256, champion=registration.champion)
    yield "the name of the run", evidence.run.rpartition("/")[2], name
    anchor = evidence.family.anchor
    data = {split: evidence.data.sha256.get(split) for split in registration.data}
    yield "base_models", evidence.base_models, registration.base_models
    yield "anchor", anchor and anchor.uri, registration.anchor
    yield "champion", evidence.champion, registration.champion
    yield "code", evidence.code.sha256, registration.code
    yield "data.sha256", data, registration.data
    yield "protocol", evidence.protocol, registration.protocol
    yield "recipe", evaluated_recipe(evidence.recipe), evaluated_recipe(recipe)
    yield "requested_by", evidence.requested_by, registration.requested_by
    yield "retrieval_encoder", evidence.retrieval_encoder, registration.retrieval_encoder
    yield "trained_rows", evidence.trained_rows, registration.trained_rows
    incumbent = evidence.versions["incumbent"].uri
    yield "the incumbent", incumbent, evidence.champion or incumbent
    # Detect a protocol that was weakened afterwards in both files.
    suites = {}
    for split, sha256 in registration.data.items():
        if split.startswith(SUITE_PREFIX):
            suites[split.removeprefix(SUITE_PREFIX)] = sha256
    protocol = build_protocol(
        recipe.evaluation,
        serving=recipe.serving,
        test_sha256=evidence.protocol.test_sha256,
        num_test_rows=evidence.protocol.num_test_rows,
        suites=suites,
    )
    yield "protocol", evidence.protocol, protocol


def _test_access_parts(evidence: Evidence) -> Iterator[Part]:
    """Yield the test-set access, which gives the level, and the expiry of the verdict."""
    stated = evidence.test_access
    paths, _ = parse_run_uri(evidence.run)
    entry = recount_access(paths.task_uri, access=stated)
    if entry is None:
        raise ValueError(
            f"the test-set ledger {paths.test_set_ledger} does not contain this access"
        )
    expires = datetime.fromisoformat(entry.at) + timedelta(days=VALID_DAYS)
    yield "test_access", stated, entry
    yield "test_access.models", stated.models, [model.uri for model in evidence.family.models]
    yield "test_access.protocol", stated.protocol, digest(evidence.protocol)
    yield "expires_at", evidence.expires_at, expires.isoformat(timespec="seconds")


def _family_parts(uri: str, *, evidence: Evidence) -> Iterator[Part]:
    """Yield the models that were frozen before the test rows were read."""
    frozen = read_value(f"{uri}/{FAMILY_FILE}")
    if not isinstance(frozen, dict):
        raise ValueError(f"{FAMILY_FILE} is missing or damaged")
    family = evidence.family
    yield "family", family, frozen
    models = {model.role: model for model in family.models}
    missing = {*models, "incumbent"} - set(evidence.versions)
    yield "the models without a version", sorted(missing), []
    validation = {score.role: score.validation for score in evidence.scores if score.role in ROLES}
    frozen_scores = {role: models[role].validation for role in family.compared_roles}
    yield "scores on validation", validation, frozen_scores
    selected = other_baselines(_baselines(evidence))
    expected = [(baseline.kind, baseline.validation) for baseline in selected.tested]
    parts = family.hybrid.parts if family.hybrid else ()
    further = [model for model in family.models if model.role not in ROLES]
    stated = [(model.kind, model.validation) for model in further[: len(expected)]]
    yield "the other models", stated, expected
    added = [model.role for model in further[len(expected) :] if model.role not in parts]
    yield "the models after them that are no parts of the hybrid", added, []
    yield "family.replacing", family.replacing, selected.replacing


def _validation_parts(evidence: Evidence, *, tables: Mapping[str, Predictions]) -> Iterator[Part]:
    """Yield the scores on validation of the frozen models, the headroom and the hybrid."""
    protocol = evidence.protocol
    family = evidence.family
    for model in family.models:
        table = tables.get(f"{model.role}_{VALIDATION}")
        if table is None:
            continue  # only the parts of a possible hybrid have a table
        score = score_table(protocol.metric, table)
        if abs(score - model.validation) > rounding_tolerance(protocol.metric, table):
            yield f"the score of the {model.role} on validation", model.validation, score

    headroom = None
    if "candidate" not in family.compared_roles:
        incumbent = tables[f"incumbent_{VALIDATION}"]
        headroom = headroom_of(incumbent, metric=protocol.metric, alpha=protocol.alpha)
        yield "that no training was needed", True, headroom.most < protocol.minimum_gain
    yield "family.headroom", family.headroom, headroom

    predictions = {role: tables[f"{role}_{VALIDATION}"] for role in _validation_roles(evidence)}
    align(*predictions.values())
    for table in predictions.values():
        require_valid_scores(table)
    hybrid = None
    if evidence.recipe.evaluation.hybrid is not None:
        hybrid = fit_hybrid(evidence.recipe.evaluation.hybrid, predictions, metric=protocol.metric)
    yield "family.hybrid", family.hybrid, hybrid


def _verdict_parts(evidence: Evidence, *, tables: Mapping[str, Predictions]) -> Iterator[Part]:
    """Yield the verdict and the report's figures from the predictions."""
    verdict = reach_verdict(evidence.verdict_inputs(tables), protocol=evidence.protocol)
    yield "verdict", evidence.verdict, verdict
    models = {model.role: model for model in evidence.family.models}
    compared = evidence.trained_rows.without(tables, roles=list(models))
    suites = tuple(evidence.protocol.suites)
    candidate = None
    if "candidate" in models:
        candidate = (evidence.versions["candidate"].kind, models["candidate"].validation)
    scores = model_scores(
        _baselines(evidence),
        candidate=candidate,
        num_validation=evidence.data.report.num_validation,
        verdict=verdict,
    )
    for name, value in figures(compared, suites=suites, roles=list(models)).items():
        yield name, getattr(evidence, name), value
    yield "scores", evidence.scores, scores


def _baselines(evidence: Evidence) -> tuple[Baseline, ...]:
    """Return the baselines with the scores on validation that the evidence states."""
    scores = (score for score in evidence.scores if score.role != "candidate")
    return tuple(
        Baseline(
            kind=score.kind,
            uri=None,
            validation=score.validation,
            servable=score.servable,
            note="",
            base_models=score.base_models,
        )
        for score in scores
    )


def rounding_tolerance(metric: str, table: Predictions) -> float:
    """Return by how much two scores of the same model may differ, because training and evaluation
    round differently.

    This is the weight of two rows or, if larger, half of the largest standard error of an accuracy,
    0.25 / sqrt(n). A row has the weight 1 / n or, in a mean over classes, at most 1 / (number of
    classes x rows of the smallest class).
    """
    weighted = len(table)
    if METRICS[metric].is_over_classes:
        supports = Counter(table.labels)
        weighted = len(supports) * min(supports.values())
    return max(2 / weighted, 0.25 / math.sqrt(len(table)))


def _validation_roles(evidence: Evidence) -> tuple[str, ...]:
    """Return the roles of the models that a hybrid is fitted from; see
    `pipeline.evaluate.validation_models`."""
    servable = {
        score.role if score.role in ROLES else score.kind: score
        for score in evidence.scores
        if score.servable
    }
    roles = [
        role
        for role in evidence.family.compared_roles
        if role in servable and role in evidence.versions
    ]
    servable = {role: servable[role] for role in roles} | servable  # ties are broken in this order
    kinds = {role: score.kind for role, score in servable.items()}
    for role, version in evidence.versions.items():
        if role in kinds:  # the kind of a champion or a contender is that of its version
            kinds[role] = version.kind
    validation = {role: score.validation for role, score in servable.items()}
    return roles_on_validation(evidence.recipe.evaluation.hybrid, kinds, validation=validation)
