"""The whole pipeline, from a recipe to a verdict with its evidence. Read this file first."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

from cluster.event_queue import forward_events, queue_progress
from cluster.progress import ProgressReporter, reporting_to
from cluster.remote import note_shortage
from tailorbird.checks.preflight_evaluation import require_gpus
from tailorbird.config.recipe import Recipe
from tailorbird.config.training import TrainingConfig
from tailorbird.evaluation.baselines.baseline import (
    CHAMPION,
    Baseline,
    best_of_bases,
    ranked_bases,
)
from tailorbird.evaluation.inference.endpoint_coverage import MAX_SHARE
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.report.evidence import AverageRecord
from tailorbird.evaluation.report.evidence_files import VALIDATION
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.models.endpoint.reachability import check_answering
from tailorbird.pipeline.artifacts import Contender, set_decision
from tailorbird.pipeline.endpoint_contender import endpoint_baseline, first_answer
from tailorbird.pipeline.estimate import with_expected_time
from tailorbird.pipeline.evaluate import (
    RunResult,
    evaluate_run,
    find_finished_run,
    stored_predictions,
)
from tailorbird.pipeline.mix import mix_candidate
from tailorbird.pipeline.nothing_to_gain import headroom_without_training, no_training_line
from tailorbird.pipeline.prepare import RunContext, prepare
from tailorbird.pipeline.progress_record import first_record, recorded
from tailorbird.pipeline.record import FineTuning, TrainedModels
from tailorbird.pipeline.side_by_side import run_side_by_side
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.hybrids import called_endpoints
from tailorbird.registry.versions import Dtype
from training.export import average_weights
from training.reports import TrainingResult
from training.trainer import finetune
from tuning.sweep import SweepResult, delete_other_weights, sweep
from tuning.worker_groups import num_groups_that_fit

NOT_OF_TRIALS = {"max_concurrent_trials"}
"""Fields of the tuning config that do not affect a trial's result."""
NOT_OF_RESULTS = {
    "batch_tokens",
    "gradient_checkpointing",
    "checkpoint_interval_s",
    "max_failures",
}
"""Fields of the training config that do not affect a result. A failed run can resume with other
values of them."""


def run_pipeline(recipe: Recipe, *, progress: ProgressReporter) -> RunResult:
    """Run a recipe from Parquet files to a registered winner, on the Ray cluster that this process
    is connected to.

    Each finished stage is cached on S3, so an interrupted run resumes when it is started again.
    Raises ValueError (DataError, VerdictRefused, StorageError, ...) for invalid input, and
    TrainingFailed if a training fails for another reason.
    """
    prepared = prepare(recipe, progress=progress)
    finished = find_finished_run(prepared)
    if finished is not None:
        progress.note(f"this run is already finished: {prepared.run}")
        return finished
    with (
        recorded(progress, first=first_record(prepared)) as progress,
        started(prepared, progress=progress) as context,
    ):
        require_trainable(context)
        baselines = fit_baselines(context)
        headroom = headroom_without_training(context, baselines)
        if headroom is not None:
            context.progress.note(no_training_line(context, headroom))
            return evaluate_run(context, TrainedModels(baselines, headroom=headroom))
        return evaluate_run(context, TrainedModels(baselines, fine_tune(context, baselines)))


def sweep_only(recipe: Recipe, *, progress: ProgressReporter) -> SweepResult:
    """Run a recipe up to its sweep; raise ValueError if there is nothing to gain."""
    with started(prepare(recipe, progress=progress), progress=progress) as context:
        require_trainable(context)
        baselines = fit_baselines(context)
        headroom = headroom_without_training(context, baselines)
        if headroom is not None:
            raise ValueError(no_training_line(context, headroom))
        return run_sweep(context, baselines)


def baselines_only(recipe: Recipe, *, progress: ProgressReporter) -> tuple[Baseline, ...]:
    """Run a recipe up to its baselines."""
    with started(prepare(recipe, progress=progress), progress=progress) as context:
        return fit_baselines(context)


@contextmanager
def started(context: RunContext, *, progress: ProgressReporter) -> Iterator[RunContext]:
    """Check that all models can be used; yield the context with an event queue that forwards to
    `progress`."""
    require_usable(context, progress=progress)
    with (
        forward_events(with_expected_time(progress, context.recipe)) as queue,
        reporting_to(queue_progress(queue)) as progress,
    ):
        yield context.reporting_to(progress, events=queue)


def require_trainable(context: RunContext) -> None:
    """Raise ModelError or DataError if a base model or a row cannot be trained on."""
    for base in context.inputs.bases:
        name = base.record.name
        context.progress.activity(f"checking that {name} can be trained on the rows")
        context.with_base(name).task.require_trainable()


def fine_tune(context: RunContext, baselines: tuple[Baseline, ...]) -> FineTuning:
    """Return the candidate with the results of all trainings: sweep, seeds, average and mix."""
    sweep_result = run_sweep(context, baselines)
    context = context.with_base(sweep_result.base_model)
    seeds = train_seeds(context, sweep_result)
    context.progress.stage("candidate: selecting it on the validation rows")
    mean = average_seeds(context, sweep_result.selected, seeds)
    best = best_on_validation(seeds, mean, method=sweep_result.selected.method)
    averaged = None
    if mean is not None:
        averaged = AverageRecord(mean.validation, chosen=best == mean)
    context.task.make_loadable(
        best.uri, trained=sweep_result.selected, dtype=_dtype_of(best, seeds)
    )
    mix = mix_candidate(context, calibrate_contender(context, best), baselines=baselines)
    candidate = calibrate_contender(context, mix.candidate)
    return FineTuning(
        sweep=sweep_result,
        seeds=seeds,
        averaged=averaged,
        mix=mix.record,
        candidate=candidate,
    )


def require_usable(context: RunContext, *, progress: ProgressReporter) -> None:
    """Raise ValueError if a base model does not fit the GPUs that evaluate it, or an endpoint
    cannot be used."""
    models = [base.record for base in context.inputs.bases]
    for model in [*models, *context.inputs.imported.values()]:
        require_gpus(context.recipe, base_model=model.uri)
    require_endpoints(context, progress=progress)


def require_endpoints(context: RunContext, *, progress: ProgressReporter) -> None:
    """Raise EndpointError if an endpoint of the recipe, the champion or a contender cannot be used
    from this process.

    Other requests to it follow the baselines of the base model, which can take long. So the first
    request for an answer is sent here. It costs money like the others, and its answer is stored
    like theirs.
    """
    configured = context.recipe.evaluation.endpoints
    endpoints = [Endpoint.from_config(config) for config in configured.values()]
    if context.champion is not None:
        endpoints += called_endpoints(context.champion)
    for version in context.inputs.contenders.values():
        endpoints += called_endpoints(version)
    for endpoint in dict.fromkeys(endpoints):
        progress.activity(f"checking that {endpoint.url} answers")
        if warning := check_answering(endpoint):
            progress.note(warning)
    config = context.task.version_config("zero_shot", dtype="float32")
    missing = "label" if context.task.classes else "text"
    for name in configured:
        counts = first_answer(context.inputs, name, config=config)
        if counts.invalid:
            progress.note(
                f"the first answer of {name} has no {missing} and counts as wrong; check the "
                "prompt in section data of the recipe"
            )
        if counts.empty:
            progress.note(
                f"the first answer of {name} ends at its maximum number of tokens without a "
                f"{missing}; a run stops if more than {MAX_SHARE:.0%} of those to validation rows "
                "do. A model that reasons needs a higher max_tokens of the endpoint"
            )


def fit_baselines(context: RunContext) -> tuple[Baseline, ...]:
    """Return the baselines, with the champion first if there is one."""
    progress = context.progress
    progress.stage("baselines: models that need no fine-tuning")
    by_base = {}
    for base in context.inputs.bases:
        name = base.record.name
        if len(context.inputs.bases) > 1:
            progress.note(f"with {name}:")
        by_base[name] = context.with_base(name).task.fit_baselines()
    baselines = best_of_bases(by_base)
    if context.champion is not None:
        note = f"current champion: {context.champion.version}"
        champion = _score_model(context, CHAMPION, uri=context.champion.uri, note=note)
        baselines = (champion, *baselines)
    for name, version in context.inputs.contenders.items():
        note = f"version {version.uri}"
        if name in context.inputs.imported:
            note = f"tuned elsewhere: {context.inputs.imported[name].name}"
        baselines += (_score_model(context, name, uri=version.uri, note=note),)
    config = context.task.version_config("zero_shot", dtype="float32")
    for name in context.recipe.evaluation.endpoints:
        progress.stage(
            f"endpoint {name}: requests for the validation rows, unless their answers are stored",
            name="endpoint",
        )
        baselines += (endpoint_baseline(context.inputs, name, baselines=baselines, config=config),)
    for baseline in baselines:  # those fitted now were reported before
        progress.score(baseline.kind, baseline.validation, baseline.note)
    return baselines


def run_sweep(context: RunContext, baselines: tuple[Baseline, ...]) -> SweepResult:
    """Return the result of the sweep, which reads only training and validation rows.

    With several base models, each trial trains one. The first trials train each once, in the order
    of their best baselines on validation.
    """
    tuning = context.recipe.tuning
    training = context.recipe.training
    inputs = context.inputs
    progress = context.progress
    scores = {baseline.kind: baseline.validation for baseline in baselines}
    progress.stage(f"sweep: {tuning.num_trials} trials")
    names = ranked_bases(baselines) or [inputs.base_model.name]
    contexts = {name: context.with_base(name) for name in names}
    tasks = {name: each.task.training_task() for name, each in contexts.items()}

    def compute(uri: str) -> SweepResult:
        note_shortage(training.max_workers * training.cpus_per_worker, progress=progress)
        progress.activity("starting the training workers, which load DeepSpeed and the base model")
        return sweep(
            tuning, training=training, tasks=tasks, baselines=scores, uri=uri, events=context.events
        )

    stage_inputs = inputs.stage_inputs(
        sweep,
        type(tasks[names[0]]),
        tuning=tuning.model_dump(mode="json", exclude=NOT_OF_TRIALS),
        training=training.model_dump(mode="json", exclude={"num_seeds", *NOT_OF_RESULTS}),
        base_models={
            name: asdict(each.inputs.base_model) | each.task.training_inputs
            for name, each in contexts.items()
        },
        baselines=scores,
    )
    sweep_result = inputs.cached(
        "sweep", output=SweepResult, inputs=stage_inputs, compute=compute, resumes=True
    )
    delete_other_weights(sweep_result.trained)
    current = {name: getattr(training, name) for name in NOT_OF_RESULTS - set(tuning.space)}
    return sweep_result.model_copy(
        update={"selected": sweep_result.selected.model_copy(update=current)}
    )


def train_seeds(context: RunContext, sweep_result: SweepResult) -> tuple[TrainingResult, ...]:
    """Return the results of the selected trial and of the further seed runs of its configuration.

    As many seeds train at the same time as the cluster has room for.
    """

    def train(seed: int) -> TrainingResult:
        context.progress.stage(
            f"seed {seed}: training the selected configuration again", name="seeds"
        )
        context.progress.activity("starting the training workers")
        config = sweep_result.selected.model_copy(update={"seed": seed})
        return _train(context, config, name=f"seed-{seed}")

    first = context.recipe.training.seed
    calls = [
        partial(train, first + number) for number in range(1, context.recipe.training.num_seeds)
    ]
    at_once = 1
    if len(calls) > 1:
        at_once = num_groups_that_fit(sweep_result.selected)
    return (sweep_result.trained, *run_side_by_side(calls, at_once=at_once))


def average_seeds(
    context: RunContext, selected: TrainingConfig, seeds: tuple[TrainingResult, ...]
) -> Contender | None:
    """Return the model with the mean of the seeds' weights; a cached stage.

    Return None if the method is not `full`, or there is only one seed.
    """
    inputs = context.inputs
    metric = context.recipe.evaluation.metric
    if selected.method != "full" or len(seeds) < 2:
        return None
    weights = [seed.weights for seed in seeds]

    def compute(uri: str) -> Contender:
        context.progress.activity("averaging the weights of the seeds")
        inputs.remote(average_weights)(weights, f"{uri}/weights")
        context.task.make_loadable(f"{uri}/weights", trained=selected, dtype=seeds[0].dtype)
        table = inputs.remote_model(predict_rows)(f"{uri}/weights", rows=context.splits.validation)
        return Contender(selected.method, f"{uri}/weights", score_table(metric, table))

    stage_inputs = inputs.stage_inputs(
        average_weights, predict_rows, weights=weights, metric=metric
    )
    averaged = inputs.cached("average", output=Contender, inputs=stage_inputs, compute=compute)
    context.progress.score(
        "average", averaged.validation, f"mean of the weights of {len(seeds)} seeds"
    )
    return averaged


def best_on_validation(
    seeds: tuple[TrainingResult, ...], averaged: Contender | None, *, method: str
) -> Contender:
    """Return the seed with the highest validation score, or the mean of all seeds if no seed scores
    higher."""
    best = max(seeds, key=lambda seed: seed.score)
    if averaged is not None and averaged.validation >= best.score:
        return averaged
    return Contender(method, best.weights, best.score)


def _dtype_of(contender: Contender, seeds: tuple[TrainingResult, ...]) -> Dtype:
    """Return the precision of the workers that trained a seed, or of the first seed for the mean of
    all seeds."""
    return next((seed.dtype for seed in seeds if seed.weights == contender.uri), seeds[0].dtype)


def calibrate_contender(context: RunContext, contender: Contender) -> Contender:
    """Return the contender with a temperature and offsets that are fitted on validation, if it is a
    classifier."""
    decision = context.task.fit_decision(contender.uri)
    if decision is None:
        return contender
    return set_decision(contender, decision)


def _train(context: RunContext, config: TrainingConfig, *, name: str) -> TrainingResult:
    """Return the result of one training; a cached stage."""
    task = context.task.training_task()

    def compute(uri: str) -> TrainingResult:
        return finetune(config, task=task, uri=uri, events=context.events)

    inputs = context.inputs.stage_inputs(
        finetune,
        type(task),
        training=config.model_dump(mode="json", exclude=NOT_OF_RESULTS),
        **context.task.training_inputs,
    )
    result = context.inputs.cached(
        name, output=TrainingResult, inputs=inputs, compute=compute, resumes=True
    )
    delete_other_weights(result)
    return result


def _score_model(context: RunContext, name: str, *, uri: str, note: str) -> Baseline:
    """Return a model that exists already as a baseline, scored on the validation rows."""
    context.progress.activity(f"{name} on the validation rows")
    table = stored_predictions(context, uri, rows_name=VALIDATION)
    score = score_table(context.recipe.evaluation.metric, table)
    return Baseline(kind=name, uri=uri, validation=score, servable=True, note=note)
