"""The way of the data as one page: a recipe goes in, a verdict with its evidence comes out."""

import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from safetensors.numpy import save_file

from cluster import storage
from cluster.code import CodeVersion, ship_code
from cluster.fetch import local_copy, stage_base_model
from cluster.progress import Show, relayed
from cluster.stages import once
from data.checks import DataReport, clean, take_training_rows
from data.encode import labels_of
from data.read import Splits, fingerprint, read_splits
from evaluation.baselines import Head, climb
from evaluation.evidence import assemble, files
from evaluation.predict import load_predictions, predict_reference, predict_rows, save_predictions
from evaluation.predictions import Predictions
from evaluation.verdict import Outcome, Question, Verdict, ask, decide
from models.load import dtype_name
from models.registry import (
    Champion,
    Kind,
    ModelVersion,
    VersionConfig,
    attach_evidence,
    now,
    read_champion,
    read_version,
    register,
)
from recipes.schema import Recipe, TrainingSection, digest
from training.loop import TrainingTask
from training.trainer import Trained, finetune
from tuning.sweep import SweepResult, sweep

ROOT = Path(__file__).parent
UNREGISTERED = "not registered"
CHAMPION = "champion"


@dataclass(frozen=True)
class Prepared:
    """What every later stage starts from."""

    recipe: Recipe
    run: str
    """URI of the run, named by the hash of recipe, code and data."""
    splits: Splits
    report: DataReport
    hashes: dict[str, str]
    """sha256 of each split."""
    classes: tuple[str, ...]
    base_model: str
    code: CodeVersion
    question: Question
    champion: str | None
    """URI of the version that served when the question was asked."""

    def key(self, **inputs: Any) -> dict[str, Any]:
        """The inputs of a stage: the code, the data it may read, and its own."""
        known = {name: self.hashes[name] for name in ("train", "validation")}
        return {"code": self.code.sha256, "base_model": self.base_model, "data": known, **inputs}


@dataclass(frozen=True)
class Model:
    """A model in the running: its kind, the URI of its artifact, and its accuracy on validation."""

    kind: str
    uri: str
    validation: float


@dataclass(frozen=True)
class Done:
    """A finished run: its verdict, where its evidence lies, and the versions it left in the registry by role."""

    run: str
    verdict: Verdict
    evidence: dict[str, Any]

    @property
    def winner(self) -> str:
        """URI of the version that the verdict chose."""
        role = "candidate" if self.verdict.outcome is Outcome.FINE_TUNE else "incumbent"
        return str(self.evidence["versions"][role]["uri"])


def run(recipe: Recipe, *, show: Show, may_train: bool = True) -> Done:
    """Everything from Parquet to a registered winner, on the Ray that this process is connected to.

    Each finished stage is found again on S3 by what went into it: run again after an interruption, it goes on. Raises
    ValueError (DataError, VerdictRefused, StorageError, ...) where the input is at fault, TrainingFailed otherwise.
    """
    prepared = prepare(recipe, show=show)
    found = find(prepared)
    if found is not None:
        show({"event": "note", "text": f"this run is finished: {prepared.run}"})
        return found
    rungs, incumbent = climb_ladder(prepared, show=show)
    with relayed(show) if may_train else nullcontext() as relay:
        swept = sweep_trials(prepared, rungs=rungs, show=show, relay=relay)
        seeds = train_seeds(prepared, swept, show=show, relay=relay)
    candidate = choose_candidate(prepared, swept.selected, seeds)
    predictions = predict_test(prepared, incumbent=incumbent, candidate=candidate, show=show)
    verdict = decide(
        incumbent=predictions["incumbent"],
        candidate=predictions["candidate"],
        reference=predictions["reference"],
        question=prepared.question,
        leaks=prepared.report.leaks,
        test_sha256=prepared.hashes["test"],
    )
    show({"event": "stage", "text": f"verdict: {verdict.sentence()}"})
    return conclude(
        prepared,
        verdict,
        models={"incumbent": incumbent, "candidate": candidate},
        parts={"rungs": rungs, "sweep": swept.to_dict(), "seeds": [seed.to_dict() for seed in seeds]},
    )


def prepare(recipe: Recipe, *, show: Show) -> Prepared:
    """Reads and checks the data, stages base model and code, and freezes the question before anything is trained."""
    show({"event": "stage", "text": "data: reading and checking"})
    splits, report = clean(read_splits(recipe.data))
    splits = take_training_rows(splits, size=recipe.data.max_train_rows, seed=recipe.training.seed)
    hashes = fingerprint(splits)
    show(
        {
            "event": "note",
            "text": f"{len(splits.train)} training, {len(splits.validation)} validation, "
            f"{len(splits.test)} test rows, {report.num_classes} classes",
        }
    )
    base_model = stage_base_model(recipe.base_model, registry=recipe.registry)
    code = ship_code(recipe.home, ROOT)
    asked = recipe.model_dump(mode="json", exclude={"serving"})
    asked_hash = digest({"recipe": asked, "code": code.sha256, "data": hashes})
    champion = read_champion(recipe.home)
    uri = _run_uri(recipe.home, asked_hash, champion=champion[0] if champion else None)
    question = ask(recipe.evaluation, test_sha256=hashes["test"], num_test_rows=len(splits.test))
    frozen = _freeze(
        uri,
        {
            "question": question.to_dict(),
            "asked": asked_hash,
            "recipe": recipe.model_dump(mode="json"),
            "code": code.sha256,
            "data": hashes,
            "champion": champion[0].uri if champion else None,
            "asked_at": now(),
        },
    )
    return Prepared(
        recipe=recipe,
        run=uri,
        splits=splits,
        report=report,
        hashes=hashes,
        classes=labels_of(splits.train.labels),
        base_model=base_model,
        code=code,
        question=Question.from_dict(frozen["question"]),
        champion=frozen["champion"],
    )


def sweep_only(recipe: Recipe, *, show: Show) -> SweepResult:
    """The run up to its sweep."""
    prepared = prepare(recipe, show=show)
    rungs, _ = climb_ladder(prepared, show=show)
    with relayed(show) as relay:
        return sweep_trials(prepared, rungs=rungs, show=show, relay=relay)


def find(prepared: Prepared) -> Done | None:
    """The run as it was concluded, if it was."""
    uri = f"{prepared.run}/evidence.json"
    if not storage.exists(uri):
        return None
    evidence = storage.read_json(uri)
    return Done(prepared.run, Verdict.from_dict(evidence["verdict"]), evidence)


def climb_ladder(prepared: Prepared, *, show: Show) -> tuple[list[dict[str, Any]], Model]:
    """The pretrained rungs, each with its artifact; and the incumbent: the best of them or the champion that serves."""
    recipe, splits = prepared.recipe, prepared.splits
    show({"event": "stage", "text": "baselines: what the pretrained model can do untouched"})

    def compute(uri: str) -> list[dict[str, Any]]:
        ladder = _remotely(climb, recipe.training)(
            prepared.base_model,
            train=splits.train,
            validation=splits.validation,
            classes=prepared.classes,
            max_length=recipe.data.max_length,
            shots=recipe.evaluation.centroid_shots,
            seed=recipe.training.seed,
        )
        for kind, head in ladder.heads.items():
            _write_rung(prepared, kind, head, uri=f"{uri}/{kind}")
        return [rung.to_dict() | {"uri": f"{uri}/{rung.kind}" if rung.servable else None} for rung in ladder.rungs]

    rungs: list[dict[str, Any]] = once(
        recipe.home,
        "ladder",
        compute=compute,
        inputs=prepared.key(
            max_length=recipe.data.max_length, shots=recipe.evaluation.centroid_shots, seed=recipe.training.seed
        ),
    )
    if prepared.champion is not None:
        rungs = [_champion_rung(prepared, prepared.champion), *rungs]  # first: a tie is the champion's
    for rung in rungs:
        show({"event": "note", "text": f"{rung['kind']:<10} {rung['validation']:.3f}  {rung['note']}"})
    best = max((rung for rung in rungs if rung["servable"]), key=lambda rung: rung["validation"])
    return rungs, Model(best["kind"], best["uri"], best["validation"])


def sweep_trials(prepared: Prepared, *, rungs: list[dict[str, Any]], show: Show, relay: Any) -> SweepResult:
    """The sweep, which sees training and validation rows only."""
    recipe = prepared.recipe
    _note_shortage(recipe.training, show=show)
    best = max(rungs, key=lambda rung: float(rung["validation"]))
    show(
        {
            "event": "stage",
            "text": f"sweep: {recipe.tuning.num_trials} trials to beat {best['validation']:.3f} ({best['kind']})",
        }
    )
    scores = {rung["kind"]: rung["validation"] for rung in rungs}

    def compute(uri: str) -> dict[str, Any]:
        _require(relay, what="sweep", command="sweep")
        task = _training_task(prepared)
        return sweep(recipe.tuning, training=recipe.training, task=task, rungs=scores, uri=uri, relay=relay).to_dict()

    value = once(
        recipe.home,
        "sweep",
        compute=compute,
        inputs=prepared.key(
            tuning=recipe.tuning.model_dump(mode="json"),
            training=recipe.training.model_dump(mode="json", exclude={"num_seeds"}),
            max_length=recipe.data.max_length,
            rungs=scores,
        ),
    )
    return SweepResult.from_dict(value)


def train_seeds(prepared: Prepared, swept: SweepResult, *, show: Show, relay: Any) -> list[Trained]:
    """The selected trial, and the same configuration trained with the further seeds that the recipe asks for."""
    recipe, trained = prepared.recipe, [swept.trained]
    for number in range(1, recipe.training.num_seeds):
        section = swept.selected.model_copy(update={"seed": recipe.training.seed + number})
        show({"event": "stage", "text": f"seed {section.seed}: the selected configuration once more"})

        def compute(uri: str, section: TrainingSection = section) -> dict[str, Any]:
            _require(relay, what=f"training with seed {section.seed}", command="run")
            return finetune(section, task=_training_task(prepared), uri=uri, relay=relay).to_dict()

        value = once(
            recipe.home,
            f"seed-{section.seed}",
            compute=compute,
            inputs=prepared.key(training=section.model_dump(mode="json"), max_length=recipe.data.max_length),
        )
        trained.append(Trained(**value))
    return trained


def choose_candidate(prepared: Prepared, selected: TrainingSection, seeds: list[Trained]) -> Model:
    """The seed that is best on validation, made a loadable artifact."""
    best = max(seeds, key=lambda seed: seed.score)
    _write_config(prepared, selected.method, uri=best.weights)
    return Model(selected.method, best.weights, best.score)


def predict_test(prepared: Prepared, *, incumbent: Model, candidate: Model, show: Show) -> dict[str, Predictions]:
    """The one look at test: incumbent, candidate and TF-IDF reference answer every test row."""
    splits, training = prepared.splits, prepared.recipe.training
    show({"event": "stage", "text": f"test: {incumbent.kind} and {candidate.kind} on the same {len(splits.test)} rows"})
    model, reference = _remotely(predict_rows, training), _remotely(predict_reference, training)
    answers: dict[str, Callable[[], Predictions]] = {
        "incumbent": lambda: model(incumbent.uri, rows=splits.test),
        "candidate": lambda: model(candidate.uri, rows=splits.test),
        "reference": lambda: reference(splits.test, train=splits.train, validation=splits.validation),
    }
    sources = {"incumbent": incumbent.uri, "candidate": candidate.uri, "reference": "tf_idf"}
    tables = {}
    for role, answer in answers.items():

        def compute(uri: str, answer: Callable[[], Predictions] = answer) -> str:
            save_predictions(f"{uri}/predictions.parquet", answer())
            return f"{uri}/predictions.parquet"

        inputs = prepared.key(model=sources[role], test=prepared.hashes["test"])
        tables[role] = load_predictions(once(prepared.recipe.home, "test", inputs=inputs, compute=compute))
        save_predictions(f"{prepared.run}/predictions/{role}.parquet", tables[role])
    return tables


def conclude(prepared: Prepared, verdict: Verdict, *, models: dict[str, Model], parts: dict[str, Any]) -> Done:
    """Registers the incumbent, and the candidate if it won; the evidence goes to the run and to the versions."""
    won = verdict.outcome is Outcome.FINE_TUNE
    versions: dict[str, Any] = {
        role: {"kind": model.kind, "uri": model.uri, "digest": UNREGISTERED} for role, model in models.items()
    }
    registered = {role: _registered(prepared, models[role]) for role in models if won or role == "incumbent"}
    for role, version in registered.items():
        versions[role] = {"kind": version.kind, "uri": version.uri, "digest": version.digest}
    evidence = assemble(
        prepared.recipe,
        run=prepared.run,
        question=prepared.question,
        verdict=verdict,
        parts={
            **parts,
            "data": prepared.report.to_dict()
            | {"trained_on": len(prepared.splits.train)}
            | {f"sha256_{name}": value for name, value in prepared.hashes.items()},
            "versions": versions,
            "champion": prepared.champion,
            "code": {"sha256": prepared.code.sha256, "uri": prepared.code.uri},
            "created_at": now(),
        },
    )
    tables = {
        f"predictions/{role}.parquet": storage.read_bytes(f"{prepared.run}/predictions/{role}.parquet")
        for role in ("incumbent", "candidate", "reference")
    }
    for role, version in registered.items():
        attach_evidence(version, files(evidence, role=role) | tables)
    written = files(evidence, role="candidate" if won else "incumbent")
    for name in sorted(written, key=lambda name: name == "evidence.json"):  # last: its presence says all is there
        storage.write_bytes(f"{prepared.run}/{name}", written[name])
    return Done(prepared.run, verdict, evidence)


def _run_uri(home: str, asked: str, *, champion: Champion | None) -> str:
    """The run's place: by what is asked and who serves; the run that made today's champion is found again as it was."""
    if champion is None:
        return f"{home}/runs/{digest({'asked': asked})[:16]}"
    question = f"{champion.run}/question.json"
    if storage.exists(question) and storage.read_json(question)["asked"] == asked:
        return champion.run
    return f"{home}/runs/{digest({'asked': asked, 'champion': champion.uri})[:16]}"


def _freeze(uri: str, question: dict[str, Any]) -> dict[str, Any]:
    """The run's `question.json`: what was written first stands, with the champion of that moment."""
    if not storage.exists(f"{uri}/question.json"):
        with suppress(storage.Conflict):  # somebody runs the same: theirs stands
            storage.write_if_match(f"{uri}/question.json", json.dumps(question, indent=2).encode(), etag=None)
    return dict(storage.read_json(f"{uri}/question.json"))


def _champion_rung(prepared: Prepared, uri: str) -> dict[str, Any]:
    """The serving champion as one more rung, judged on the same validation rows."""
    champion, rows = read_version(uri), prepared.splits.validation
    if champion.classes != prepared.classes:
        raise ValueError(
            f"the champion {uri} knows other classes than the training rows; give the new label set a recipe of its "
            "own name, or the old labels"
        )

    def compute(_: str) -> float:
        return float(_remotely(predict_rows, prepared.recipe.training)(uri, rows=rows).scores.mean())

    score = once(prepared.recipe.home, "champion", inputs=prepared.key(champion=champion.digest), compute=compute)
    return {
        "kind": CHAMPION,
        "validation": score,
        "servable": True,
        "note": f"serves now: {champion.version}",
        "uri": uri,
    }


def _write_rung(prepared: Prepared, kind: Kind, head: Head, *, uri: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_file({"weight": head.weight, "bias": head.bias}, Path(folder) / "head.safetensors")
        storage.upload_folder(Path(folder), uri)
    _write_config(prepared, kind, uri=uri)


def _write_config(prepared: Prepared, kind: Kind, *, uri: str) -> None:
    """Makes a folder of weights an artifact that can be loaded."""
    if storage.exists(f"{uri}/config.json"):
        return
    config = VersionConfig(
        kind=kind,
        classes=prepared.classes,
        base_model=prepared.base_model,
        max_length=prepared.recipe.data.max_length,
        dtype=dtype_name(),
        code=prepared.code.uri,
        recipe_hash=digest(prepared.recipe),
        created_at=now(),
    )
    storage.write_bytes(f"{uri}/config.json", config.model_dump_json(indent=2).encode())


def _registered(prepared: Prepared, model: Model) -> ModelVersion:
    if "/versions/" in model.uri:  # the champion that serves already
        return read_version(model.uri)
    return register(prepared.recipe.home, local_copy(model.uri))


def _training_task(prepared: Prepared) -> TrainingTask:
    """Training and validation rows; test is not in it."""
    return TrainingTask(
        base_model=prepared.base_model,
        train=prepared.splits.train,
        validation=prepared.splits.validation,
        classes=prepared.classes,
        max_length=prepared.recipe.data.max_length,
    )


def _note_shortage(training: TrainingSection, *, show: Show) -> None:
    """Says so where the workers will have to wait for CPUs."""
    needed, free = training.num_workers * training.cpus_per_worker, ray.available_resources().get("CPU", 0.0)
    if free < needed:
        text = f"training needs {needed} CPUs and {free:g} are free: it waits for a service or job to end, or for nodes"
        show({"event": "note", "text": text})


def _require(relay: Any, *, what: str, command: str) -> None:
    """Training tells of itself through a relay; without one, it is not wanted."""
    if relay is None:
        raise ValueError(f"the {what} of this recipe is not finished; `tailorbird {command} RECIPE` does it")


def _remotely(function: Callable[..., Any], training: TrainingSection) -> Callable[..., Any]:
    """The function as a Ray task on a node with a worker's CPUs and GPUs; a call waits for its value."""
    task = ray.remote(num_cpus=training.cpus_per_worker, num_gpus=training.gpus_per_worker)(function)

    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return ray.get(task.remote(*arguments, **named))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # the error itself: its dual's text is the remote traceback

    return call
