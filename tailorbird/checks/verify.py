"""Verify that the evidence of a run or a version is complete and its predictions give the stored
verdict."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta

from tailorbird import PROJECT_ROOT, storage
from tailorbird.checks import verify_files
from tailorbird.checks.differences import differences, read_content, read_value
from tailorbird.config.base import digest
from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.baselines.baseline import Baseline, other_baselines
from tailorbird.evaluation.hybrid import fit_hybrid, roles_on_validation
from tailorbird.evaluation.prediction_store import load_predictions
from tailorbird.evaluation.predictions import Predictions, VerdictRefused, align
from tailorbird.evaluation.report import evidence_files
from tailorbird.evaluation.report.evidence import (
    ENGINE_EVIDENCE,
    EVIDENCE_FILE,
    FAMILY_FILE,
    ROLES,
    EngineEvidence,
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
    CHANGED_SETS,
    SUITE_PREFIX,
    VerdictInputs,
    model_predictions,
    require_valid_scores,
)
from tailorbird.evaluation.verdict.protocol import VALID_DAYS, build_protocol
from tailorbird.evaluation.verdict.reach import reach_verdict
from tailorbird.evaluation.verdict.runtime_equivalence import evaluate_equivalence
from tailorbird.registry.test_set_ledger import recount_access
from tailorbird.registry.versions import RegistryError, read_version
from tailorbird.storage import s3
from tailorbird.storage.code_files import code_sha256, runtime_files
from tailorbird.storage.paths import parse_run_uri

NEEDED = (EVIDENCE_FILE, PROTOCOL_FILE, FAMILY_FILE, *evidence_files.PAGES)
RECOMPUTED = "the recomputed value is"


def verify_evidence(uri: str) -> tuple[str, ...]:
    """Return the faults in the evidence of a run or a version, one sentence each; empty if its
    verdict holds.

    Raises ValueError if there is no evidence at the URI.
    """
    uri = uri.rstrip("/")
    if storage.exists(f"{uri}/{ENGINE_EVIDENCE}"):
        return _engine_faults(uri)
    if not any(storage.exists(f"{uri}/{name}") for name in (MANIFEST, EVIDENCE_FILE)):
        missing = f"{uri} has neither {MANIFEST} nor {EVIDENCE_FILE}"
        raise ValueError(f"{missing}; give the URI of a finished run or a version")
    try:
        registration = Preregistration.model_validate(read_value(f"{uri}/{PROTOCOL_FILE}"))
    except ValueError:
        registration = None
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
    checks: tuple[Callable[[], Iterator[str]], ...] = (
        lambda: differences(stored, evidence, at="", other="the parsed value is"),
        lambda: _subject_faults(uri, evidence=evidence),
        lambda: _protocol_faults(evidence, registration=registration),
        lambda: _family_faults(uri, evidence=evidence),
        lambda: _validation_faults(evidence, tables=tables),
        lambda: _headroom_faults(evidence, tables=tables),
        lambda: _hybrid_faults(evidence, tables=tables),
        lambda: _verdict_faults(evidence, tables=tables),
        lambda: verify_files.trained_rows_faults(evidence),
        lambda: _test_access_faults(evidence),
        lambda: verify_files.evaluated_faults(evidence),
        lambda: verify_files.model_faults(evidence.base_model, what="base model"),
        lambda: verify_files.model_faults(evidence.retrieval_encoder, what="retrieval encoder"),
        lambda: verify_files.code_faults(evidence.code),
    )
    for check in checks:
        with damage_as_fault(EVIDENCE_FILE, faults):
            faults += check()
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
        faults.append(f"{file} is damaged: {type(error).__name__}: {error}")


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


def _subject_faults(uri: str, *, evidence: Evidence) -> Iterator[str]:
    """Check that the evidence is that of the run or the version at the URI.

    The files of the versions in the evidence are checked against their digests by
    `verify_files.evaluated_faults`.
    """
    versions = [version.uri for version in evidence.versions.values()]
    if uri not in (evidence.run, *versions):
        yield (
            f"this is the evidence of {evidence.run} and its versions {', '.join(versions)}, not "
            f"of {uri}"
        )


def _protocol_faults(evidence: Evidence, *, registration: Preregistration | None) -> Iterator[str]:
    """Compare the evidence with the test protocol that was registered before training."""
    if registration is None:
        yield (
            f"{PROTOCOL_FILE} is missing or damaged, so the test protocol registered before "
            "training is unknown"
        )
        return
    recipe = registration.recipe
    sha256 = request_digest(registration)
    if registration.request_sha256 != sha256:
        stated = registration.request_sha256
        yield f"{PROTOCOL_FILE} was changed: the digest of its request is {sha256}, not {stated}"
    name = run_name(sha256, champion=registration.champion)
    if evidence.run.rpartition("/")[2] != name:
        yield f"{evidence.run} is not the run of this protocol, which is {name}"
    anchor = evidence.family.anchor
    pairs = {
        "base_model": (evidence.base_model, registration.base_model),
        "anchor": (anchor and anchor.uri, registration.anchor),
        "champion": (evidence.champion, registration.champion),
        "code": (evidence.code.sha256, registration.code),
        "data.sha256": (
            {split: evidence.data.sha256.get(split) for split in registration.data},
            registration.data,
        ),
        "protocol": (evidence.protocol, registration.protocol),
        "recipe": (evaluated_recipe(evidence.recipe), evaluated_recipe(recipe)),
        "requested_by": (evidence.requested_by, registration.requested_by),
        "retrieval_encoder": (evidence.retrieval_encoder, registration.retrieval_encoder),
        "trained_rows": (evidence.trained_rows, registration.trained_rows),
    }
    for part, (value, registered) in pairs.items():
        yield from differences(value, registered, at=part, other=f"in {PROTOCOL_FILE} it is")
    incumbent = evidence.versions["incumbent"].uri
    if evidence.champion not in (None, incumbent):
        yield (
            f"the incumbent is {incumbent}; it must be the champion of the run, {evidence.champion}"
        )
    # Detect a protocol that was weakened afterwards in both files.
    protocol = evidence.protocol
    rebuilt = build_protocol(
        recipe.evaluation,
        serving=recipe.serving,
        test_sha256=protocol.test_sha256,
        num_test_rows=protocol.num_test_rows,
        suites={
            name.removeprefix(SUITE_PREFIX): sha256
            for name, sha256 in registration.data.items()
            if name.startswith(SUITE_PREFIX)
        },
    )
    yield from differences(protocol, rebuilt, at="protocol", other="the recipe gives")


def _family_faults(uri: str, *, evidence: Evidence) -> Iterator[str]:
    """Compare the models of the evidence with those that were frozen before the test rows were
    read."""
    frozen = read_value(f"{uri}/{FAMILY_FILE}")
    if not isinstance(frozen, dict):
        yield (
            f"{FAMILY_FILE} is missing or damaged, so the models frozen before the test are unknown"
        )
        return
    yield from differences(evidence.family, frozen, at="family", other=f"in {FAMILY_FILE} it is")
    models = {model.role: model for model in evidence.family.models}
    if missing := {*models, "incumbent"} - set(evidence.versions):
        yield f"evidence.json has no version of the models: {', '.join(sorted(missing))}"
    validation = {score.role: score.validation for score in evidence.scores if score.role in ROLES}
    frozen_scores = {role: models[role].validation for role in evidence.family.compared_roles}
    yield from differences(
        validation, frozen_scores, at="scores on validation", other=f"in {FAMILY_FILE} it is"
    )
    selected = other_baselines(_baselines(evidence))
    expected = [(baseline.kind, baseline.validation) for baseline in selected.tested]
    parts = evidence.family.hybrid.parts if evidence.family.hybrid else ()
    further = [model for model in evidence.family.models if model.role not in ROLES]
    stated = [(model.kind, model.validation) for model in further[: len(expected)]]
    yield from differences(
        stated, expected, at="the other models", other="by the scores on validation they are"
    )
    added = [model.role for model in further[len(expected) :] if model.role not in parts]
    yield from differences(
        added, [], at="the models after them", other="only parts of the hybrid are allowed, not"
    )
    replacing = evidence.family.replacing
    yield from differences(
        replacing, selected.replacing, at="family.replacing", other="by the scores it is"
    )


def _validation_faults(evidence: Evidence, *, tables: Mapping[str, Predictions]) -> Iterator[str]:
    """Compare the scores on validation of the frozen models with those of the stored
    predictions."""
    for model in evidence.family.models:
        table = tables.get(f"{model.role}_{VALIDATION}")
        if table is None:
            continue  # only the parts of a possible hybrid have a table
        score = score_table(evidence.protocol.metric, table)
        if abs(score - model.validation) > rounding_tolerance(evidence.protocol.metric, table):
            stated = (
                f"the score of the {model.role} on validation is {model.validation:.4f} in "
                f"{FAMILY_FILE}"
            )
            yield f"{stated}, but its stored predictions score {score:.4f}"


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
    kinds |= {
        role: evidence.versions[role].kind for role in roles
    }  # the kind of a champion is that of its version
    validation = {role: score.validation for role, score in servable.items()}
    return roles_on_validation(evidence.recipe.evaluation.hybrid, kinds, validation=validation)


def _headroom_faults(evidence: Evidence, *, tables: Mapping[str, Predictions]) -> Iterator[str]:
    """Check why no model was trained: the headroom of the stored predictions is below the minimum
    gain."""
    headroom = evidence.family.headroom
    if "candidate" in evidence.family.compared_roles:
        yield from differences(headroom, None, at="family.headroom", other="with a candidate it is")
        return
    table = tables.get(f"incumbent_{VALIDATION}")
    if table is None:
        return  # already reported as a missing file
    protocol = evidence.protocol
    recomputed = headroom_of(table, metric=protocol.metric, alpha=protocol.alpha)
    yield from differences(headroom, recomputed, at="family.headroom", other=RECOMPUTED)
    if recomputed.most >= protocol.minimum_gain:
        most = (
            f"{recomputed.most:.4g} can be gained, and the minimum gain is "
            f"{protocol.minimum_gain:g}"
        )
        yield f"no model was trained, although up to {most}"


def _hybrid_faults(evidence: Evidence, *, tables: Mapping[str, Predictions]) -> Iterator[str]:
    """Compare the hybrid with one fitted again on the predictions of the validation rows."""
    config = evidence.recipe.evaluation.hybrid
    roles = _validation_roles(evidence)
    predictions = {
        role: tables[name] for role in roles if (name := f"{role}_{VALIDATION}") in tables
    }
    if len(predictions) < len(roles):
        return  # already reported as missing files
    align(*predictions.values())
    for table in predictions.values():
        require_valid_scores(table)
    if config is None:
        hybrid = None
    else:
        hybrid = fit_hybrid(config, predictions, metric=evidence.protocol.metric)
    yield from differences(
        evidence.family.hybrid, hybrid, at="family.hybrid", other="the validation rows give"
    )


def _verdict_faults(evidence: Evidence, *, tables: Mapping[str, Predictions]) -> Iterator[str]:
    """Recompute the verdict and the report's figures from the predictions."""
    missing = [model.role for model in evidence.family.models if model.role not in tables]
    if missing:
        yield f"the verdict cannot be recomputed without predictions of: {', '.join(missing)}"
        return
    verdict = reach_verdict(evidence.verdict_inputs(tables), protocol=evidence.protocol)
    yield from differences(evidence.verdict, verdict, at="verdict", other=RECOMPUTED)
    roles = [model.role for model in evidence.family.models]
    compared = evidence.trained_rows.without(tables, roles=roles)
    recomputed = figures(compared, suites=tuple(evidence.protocol.suites), roles=roles)
    candidates = [model for model in evidence.family.models if model.role == "candidate"]
    recomputed["scores"] = model_scores(
        _baselines(evidence),
        candidate=(evidence.versions["candidate"].kind, candidates[0].validation)
        if candidates
        else None,
        num_validation=evidence.data.report.num_validation,
        verdict=verdict,
    )
    for name, value in recomputed.items():
        yield from differences(getattr(evidence, name), value, at=name, other=RECOMPUTED)


def _baselines(evidence: Evidence) -> tuple[Baseline, ...]:
    """Return the baselines with the scores on validation that the evidence states."""
    scores = (score for score in evidence.scores if score.role != "candidate")
    return tuple(
        Baseline(score.kind, None, score.validation, score.servable, note="") for score in scores
    )


def _test_access_faults(evidence: Evidence) -> Iterator[str]:
    """Compare the test-set access, which gives the level, and the expiry of the verdict with the
    test-set ledger."""
    stated = evidence.test_access
    paths, _ = parse_run_uri(evidence.run)
    entry = recount_access(paths.task_uri, access=stated)
    if entry is None:
        yield f"the test-set ledger {paths.test_set_ledger} does not contain this access"
        return
    yield from differences(stated, entry, at="test_access", other="the test-set ledger gives")
    models = [model.uri for model in evidence.family.models]
    yield from differences(stated.models, models, at="test_access.models", other="the family has")
    protocol = digest(evidence.protocol)
    yield from differences(
        stated.protocol, protocol, at="test_access.protocol", other="the protocol gives"
    )
    expires = datetime.fromisoformat(entry.at) + timedelta(days=VALID_DAYS)
    expires_at = expires.isoformat(timespec="seconds")
    yield from differences(
        evidence.expires_at, expires_at, at="expires_at", other="the test-set access gives"
    )


def _engine_faults(uri: str) -> tuple[str, ...]:
    """Verify the evidence of a version that was exported for another engine."""
    faults = list(verify_files.file_faults(uri, needed=(ENGINE_EVIDENCE,), tables=ROLES))
    tables, unreadable = verify_files.load_readable_tables(uri)
    faults += unreadable
    with damage_as_fault(ENGINE_EVIDENCE, faults):
        record = EngineEvidence.model_validate(read_value(f"{uri}/{ENGINE_EVIDENCE}"))
        faults += engine_subject_faults(uri, record=record)
        faults += _run_faults(record, tables=tables)
        inputs = VerdictInputs(
            models={role: model_predictions(role, tables) for role in ROLES},
            test_sha256=record.protocol.test_sha256,
            costs=record.serving,
        )
        equivalence = evaluate_equivalence(inputs, protocol=record.protocol)
        faults += differences(record.equivalence, equivalence, at="equivalence", other=RECOMPUTED)
        faults += verify_files.registered_faults(
            "the evaluated version", record.evaluated.uri, digest=record.evaluated.digest
        )
        faults += verify_files.named_version_faults(uri)
        faults += verify_files.code_faults(record.code)
    return tuple(faults)


def engine_subject_faults(uri: str, *, record: EngineEvidence) -> Iterator[str]:
    """Check that the version at the URI was exported from the version of the evidence, for the same
    engine."""
    try:
        version = read_version(uri)
    except RegistryError:
        return  # reported by `verify_files.named_version_faults`
    if version.exported_from != record.evaluated or record.engine != version.engine:
        exported = f"an export of {record.evaluated.uri} for {record.engine}"
        yield f"this is the evidence of {exported}, which {uri} is not"


def _run_faults(record: EngineEvidence, *, tables: Mapping[str, Predictions]) -> Iterator[str]:
    """Compare the evidence of an engine with the run that evaluated the same weights."""
    run = record.run
    try:
        evidence = Evidence.model_validate(read_value(f"{run}/{EVIDENCE_FILE}"))
    except ValueError:
        yield f"the evidence of {run}, which evaluated these weights, is missing or damaged"
        return
    yield from differences(
        record.protocol, evidence.protocol, at="protocol", other=f"in {run} it is"
    )
    roles = [
        role
        for role, version in evidence.versions.items()
        if version.digest == record.evaluated.digest
    ]
    if not roles:
        yield f"{run} did not evaluate the version {record.evaluated.uri}"
        return
    names = {"incumbent": roles[0]}
    for name in CHANGED_SETS:
        names[f"incumbent_{name}"] = f"{roles[0]}_{name}"
    for name, source in names.items():
        if name not in tables:
            continue
        evaluated = load_predictions(f"{run}/predictions/{source}.parquet")
        # The metadata of the schema is the name of the model, which may differ.
        if not tables[name].to_table().equals(evaluated.to_table(), check_metadata=False):
            yield f"predictions/{name}.parquet differs from {source} in {run}"
