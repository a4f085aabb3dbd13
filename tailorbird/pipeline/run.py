"""The way of the data as one page: a recipe goes in, a verdict with its evidence comes out."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from cluster.progress import Show, relayed
from cluster.remote import note_shortage, remotely
from tailorbird.config.recipe import Recipe
from tailorbird.config.training import TrainingConfig
from tailorbird.evaluation.baselines.chat import climb_chat
from tailorbird.evaluation.baselines.classification import climb
from tailorbird.evaluation.inference.predict import calibrate, predict_rows
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.pipeline.artifacts import Model, make_loadable, write_prompt, write_rung
from tailorbird.pipeline.evaluate import Done, find, judge
from tailorbird.pipeline.prepare import Prepared, prepare
from tailorbird.registry.versions import read_version
from tailorbird.storage.stage_cache import once
from training.task import check_trainable
from training.trainer import Trained, finetune
from training.weight_averaging import average_weights
from tuning.experiment_tracking import require_trackers
from tuning.futility import set_goal
from tuning.learning_curve import Curve, curve_sizes, fit_curve
from tuning.sweep import SweepResult, sweep

CHAMPION = "champion"

NOT_OF_TRIALS = {"learning_curve", "trackers", "max_concurrent_trials"}
"""Fields of the tuning section that change no trial."""
NOT_OF_RESULTS = {"gradient_checkpointing", "checkpoint_interval_s", "max_failures"}
"""Fields of the training section that change no result: who changes them after a failure goes on from what is done."""


def run_pipeline(recipe: Recipe, *, show: Show, may_train: bool = True) -> Done:
    """Everything from Parquet to a registered winner, on the Ray that this process is connected to.

    Each finished stage is found again on S3 by what went into it: run again after an interruption, it goes on. Raises
    ValueError (DataError, VerdictRefused, StorageError, ...) where the input is at fault, TrainingFailed otherwise.
    """
    require_trackers(recipe.tuning)
    prepared = prepare(recipe, show=show)
    for leak in prepared.data.report.leaks[:1]:
        told = f"{leak}: the verdict can only be INSUFFICIENT_EVIDENCE (rule 2); split the rows anew"
        show({"event": "note", "text": told})
    found = find(prepared)
    if found is not None:
        show({"event": "note", "text": f"this run is finished: {prepared.run}"})
        return found
    if may_train:
        require_trainable(prepared)
    rungs, incumbent = climb_ladder(prepared, show=show)
    with relayed(show) if may_train else nullcontext() as relay:
        swept = sweep_trials(prepared, rungs=rungs, show=show, relay=relay)
        seeds = train_seeds(prepared, swept, show=show, relay=relay)
        curve = learn_curve(prepared, swept, show=show, relay=relay) if recipe.tuning.learning_curve else None
    averaged = average_seeds(prepared, swept.selected, seeds, show=show)
    candidate = choose_candidate(prepared, swept.selected, seeds, averaged)
    return judge(
        prepared,
        models={"incumbent": incumbent, "candidate": candidate},
        parts={
            "rungs": rungs,
            "sweep": swept.to_dict(),
            "seeds": [seed.to_dict() for seed in seeds],
            "averaged": {"validation": averaged.validation, "chosen": averaged.uri == candidate.uri}
            if averaged
            else None,
            "curve": curve.to_dict() if curve else None,
            "training_cpu_s": training_cpu_seconds(recipe.training, swept, seeds),
        },
        show=show,
    )


def sweep_only(recipe: Recipe, *, show: Show) -> SweepResult:
    """The run up to its sweep."""
    require_trackers(recipe.tuning)
    prepared = prepare(recipe, show=show)
    require_trainable(prepared)
    rungs, _ = climb_ladder(prepared, show=show)
    with relayed(show) as relay:
        return sweep_trials(prepared, rungs=rungs, show=show, relay=relay)


def require_trainable(prepared: Prepared) -> None:
    """Raises ModelError or DataError where a chat's base model or one of its training rows cannot be trained on.

    The ladder takes minutes, and workers that fail by it are started again: it is tried once, before.
    """
    if prepared.prompting is None:
        return
    training = prepared.recipe.training

    def compute(_: str) -> None:
        remotely(check_trainable, training)(prepared.task(), attention_dropout=training.attention_dropout)

    inputs = prepared.key(**prepared.asked_of_training, attention_dropout=training.attention_dropout)
    once(prepared.recipe.task_uri, "trainable", inputs=inputs, compute=compute)


def climb_ladder(prepared: Prepared, *, show: Show) -> tuple[list[dict[str, Any]], Model]:
    """The pretrained rungs, each with its artifact; and the incumbent: the best of them or the champion that serves."""
    recipe, splits = prepared.recipe, prepared.splits
    show({"event": "stage", "text": "baselines: what the pretrained model can do untouched"})

    def classifiers(uri: str) -> list[dict[str, Any]]:
        ladder = remotely(climb, recipe.training)(
            prepared.base_model,
            train=splits.train,
            validation=splits.validation,
            classes=prepared.classes,
            max_length=recipe.data.max_length,
            shots=recipe.evaluation.centroid_shots,
            seed=recipe.training.seed,
            metric=recipe.evaluation.metric,
        )
        for kind, head in ladder.heads.items():
            write_rung(prepared, kind, head, temperature=ladder.temperatures[kind], uri=f"{uri}/{kind}")
        return [rung.to_dict() | {"uri": f"{uri}/{rung.kind}" if rung.servable else None} for rung in ladder.rungs]

    def prompts(uri: str) -> list[dict[str, Any]]:
        found = remotely(climb_chat, recipe.training)(
            prepared.base_model,
            train=splits.train,
            validation=splits.validation,
            prompting=prepared.prompting,
            examples=examples,
            metric=recipe.evaluation.metric,
        )
        for one in found:
            write_prompt(prepared, one.rung.kind, one.prompting, uri=f"{uri}/{one.rung.kind}")
        return [one.rung.to_dict() | {"uri": f"{uri}/{one.rung.kind}"} for one in found]

    config, seed = recipe.evaluation, recipe.training.seed
    examples = {"shots": config.prompt_shots, "draws": config.prompt_draws, "seed": seed}
    asked: dict[str, Any] = {"max_length": recipe.data.max_length, "shots": config.centroid_shots, "seed": seed}
    if prepared.prompting is not None:
        asked = examples | {"prompting": prepared.prompting.model_dump(mode="json")}
    rungs: list[dict[str, Any]] = once(
        recipe.task_uri,
        "ladder",
        compute=classifiers if prepared.prompting is None else prompts,
        inputs=prepared.key(**asked, metric=config.metric),
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
    needed = recipe.training.max_workers * recipe.training.cpus_per_worker
    note_shortage(needed, what="training", show=show)
    goal = set_goal(rungs, minimum_gain=recipe.evaluation.minimum_gain)
    text = f"sweep: {recipe.tuning.num_trials} trials to beat {goal.text}"
    show({"event": "stage", "text": text, "rungs": goal.rungs})

    def compute(uri: str) -> dict[str, Any]:
        _require(relay, what="sweep", command="sweep")
        task, config = prepared.task(), recipe.tuning
        return sweep(config, training=recipe.training, task=task, goal=goal, uri=uri, relay=relay).to_dict()

    value = once(
        recipe.task_uri,
        "sweep",
        compute=compute,
        inputs=prepared.key(
            tuning=recipe.tuning.model_dump(mode="json", exclude=NOT_OF_TRIALS),
            training=recipe.training.model_dump(mode="json", exclude={"num_seeds", "average_seeds", *NOT_OF_RESULTS}),
            **prepared.asked_of_training,
            rungs=goal.rungs,
            to_beat=goal.to_beat,
        ),
    )
    swept = SweepResult.from_dict(value)
    now = {name: getattr(recipe.training, name) for name in NOT_OF_RESULTS - set(recipe.tuning.space)}
    swept = replace(swept, selected=swept.selected.model_copy(update=now))
    if swept.ended:
        show({"event": "note", "text": f"the sweep ended itself: {swept.ended}"})
    return swept


def train_seeds(prepared: Prepared, swept: SweepResult, *, show: Show, relay: Any) -> list[Trained]:
    """The selected trial, and the same configuration trained with the further seeds that the recipe asks for."""
    trained = [swept.trained]
    for number in range(1, prepared.recipe.training.num_seeds):
        config = swept.selected.model_copy(update={"seed": prepared.recipe.training.seed + number})
        show({"event": "stage", "text": f"seed {config.seed}: the selected configuration once more"})
        trained.append(_train_once(prepared, config, name=f"seed-{config.seed}", relay=relay))
    return trained


def learn_curve(prepared: Prepared, swept: SweepResult, *, show: Show, relay: Any) -> Curve:
    """What the selected configuration reaches from parts of the training rows, and what more rows would give."""
    num_rows = prepared.data.num_train
    sizes = curve_sizes(len(prepared.splits.train), num_classes=max(1, len(prepared.classes)))
    parts = sizes if sizes[-1] < num_rows else sizes[:-1]  # of streamed rows, memory holds parts only
    scores = []
    for size in parts:
        show({"event": "stage", "text": f"learning curve: {size:,} of {num_rows:,} training rows"})
        name = f"curve-{size}"
        scores.append(_train_once(prepared, swept.selected, name=name, relay=relay, num_train_rows=size).score)
    scores.append(swept.trained.score)
    return fit_curve((*parts, num_rows), scores=tuple(scores), num_validation=len(prepared.splits.validation))


def average_seeds(prepared: Prepared, selected: TrainingConfig, seeds: list[Trained], *, show: Show) -> Model | None:
    """The mean of the seeds' weights with its score on validation, where the recipe lets it run and it can be made."""
    training, metric = prepared.recipe.training, prepared.recipe.evaluation.metric
    if not training.average_seeds or selected.method != "full" or len(seeds) < 2:
        return None
    weights = [seed.weights for seed in seeds]

    def compute(uri: str) -> dict[str, Any]:
        remotely(average_weights, training)(weights, f"{uri}/weights")
        make_loadable(prepared, selected.method, uri=f"{uri}/weights")
        table = remotely(predict_rows, training)(f"{uri}/weights", rows=prepared.splits.validation)
        return {"weights": f"{uri}/weights", "score": score_table(metric, table)}

    found = once(
        prepared.recipe.task_uri, "average", inputs=prepared.key(weights=weights, metric=metric), compute=compute
    )
    show({"event": "note", "text": f"the mean of {len(seeds)} seeds' weights: validation {found['score']:.3f}"})
    return Model(selected.method, found["weights"], found["score"])


def best_on_validation(seeds: list[Trained], averaged: Model | None, *, method: str) -> Model:
    """The seed that is best on validation, or the mean of all where none is better."""
    best = max(seeds, key=lambda seed: seed.score)
    if averaged is not None and averaged.validation >= best.score:
        return averaged
    return Model(method, best.weights, best.score)


def choose_candidate(
    prepared: Prepared, selected: TrainingConfig, seeds: list[Trained], averaged: Model | None
) -> Model:
    """`best_on_validation` as a loadable artifact, with the temperature that validation gives it."""
    candidate = best_on_validation(seeds, averaged, method=selected.method)
    make_loadable(prepared, selected.method, uri=candidate.uri)
    if prepared.prompting is not None:  # an answer in words has no temperature
        return candidate

    def compute(_: str) -> float:
        found: float = remotely(calibrate, prepared.recipe.training)(candidate.uri, rows=prepared.splits.validation)
        return found

    temperature = once(
        prepared.recipe.task_uri, "temperature", inputs=prepared.key(model=candidate.uri), compute=compute
    )
    make_loadable(prepared, selected.method, uri=candidate.uri, temperature=temperature)
    return candidate


def training_cpu_seconds(training: TrainingConfig, swept: SweepResult, seeds: list[Trained]) -> float:
    """CPU-seconds inside training steps of every trial and further seed."""
    seconds = sum(row.seconds for row in swept.rows) + sum(seed.step_seconds for seed in seeds[1:])
    return seconds * training.max_workers * training.cpus_per_worker


def _train_once(
    prepared: Prepared, config: TrainingConfig, *, name: str, relay: Any, num_train_rows: int | None = None
) -> Trained:
    def compute(uri: str) -> dict[str, Any]:
        _require(relay, what=f"training {name}", command="run")
        return finetune(config, task=prepared.task(num_train_rows=num_train_rows), uri=uri, relay=relay).to_dict()

    inputs = prepared.key(
        training=config.model_dump(mode="json", exclude=NOT_OF_RESULTS),
        **prepared.asked_of_training,
    )
    if num_train_rows is not None:
        inputs["num_train_rows"] = num_train_rows
    return Trained(**once(prepared.recipe.task_uri, name, inputs=inputs, compute=compute))


def _champion_rung(prepared: Prepared, uri: str) -> dict[str, Any]:
    """The serving champion as one more rung, judged on the same validation rows."""
    champion, rows, metric = read_version(uri), prepared.splits.validation, prepared.recipe.evaluation.metric
    if champion.classes != prepared.classes:
        raise ValueError(
            f"the champion {uri} knows other classes than the training rows; give the new label set a recipe of its "
            "own name, or the old labels"
        )

    def compute(_: str) -> float:
        table = remotely(predict_rows, prepared.recipe.training)(uri, rows=rows)
        return score_table(metric, table)

    inputs = prepared.key(champion=champion.digest, metric=metric)
    score = once(prepared.recipe.task_uri, "champion", inputs=inputs, compute=compute)
    return {
        "kind": CHAMPION,
        "validation": score,
        "servable": True,
        "note": f"serves now: {champion.version}",
        "uri": uri,
    }


def _require(relay: Any, *, what: str, command: str) -> None:
    """Training tells of itself through a relay; without one, it is not wanted."""
    if relay is None:
        raise ValueError(f"the {what} of this recipe is not finished; `tailorbird {command} RECIPE` does it")
