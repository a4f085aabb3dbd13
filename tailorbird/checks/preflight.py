"""`tailorbird preflight`: check whether a run would fail, from collected facts."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cluster.node_probe import NodeReport, WriteCheck
from cluster.progress import SILENT, ProgressReporter
from cluster.resources import (
    UNBOUNDED,
    Holder,
    Resources,
    worker_resources,
    workers_that_fit,
)
from tailorbird.checks.preflight_evaluation import check_evaluation
from tailorbird.checks.preflight_facts import (
    BaseModelFacts,
    Cluster,
    PreflightFacts,
    collect_facts,
)
from tailorbird.checks.preflight_memory import check_memory
from tailorbird.checks.result import CheckResult, fault, note, ok, passes
from tailorbird.checks.suitability import check_suitability
from tailorbird.config.data import MAX_ROWS_IN_MEMORY
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TASKS
from tailorbird.data.tokenize import labels_of
from tailorbird.evaluation.verdict.formatting import counted
from tailorbird.pipeline.contenders import read_contenders, require_same_classes
from tailorbird.pipeline.inputs import inspect_rows

AS_JOB = (
    "if only the versions differ, submit a job, which runs with the cluster's versions: "
    "ray job submit --working-dir . -- python -m tailorbird preflight RECIPE"
)
LEAST_STORED = 0.9  # minimum share of parameters in the files; unused heads may be missing
NUM_LISTED = 5


def check_recipe(
    recipe: Recipe, *, without_cluster: bool = False, progress: ProgressReporter = SILENT
) -> tuple[CheckResult, ...]:
    """Check everything that a run of the recipe needs; with `without_cluster`, everything except
    the cluster.

    Without a fault, they end with what is known about whether the task is worth fine-tuning. With
    a cluster, the rows are read for it and checked, as a run does.
    """
    progress.stage("preflight: collecting facts about data, base model, registry and cluster")
    facts = collect_facts(recipe, without_cluster=without_cluster)
    results = check_facts(recipe, facts)
    if not passes(results):
        return results
    splits = None
    if without_cluster:
        results += (note("rows", "not read without a cluster"),)
    else:
        progress.stage("rows: reading and checking them")
        try:
            data = inspect_rows(recipe)
            if data is not None and TASKS[recipe.task].has_classes:
                classes = labels_of(data.splits.train.labels)
                require_same_classes(read_contenders(recipe), classes=classes)
        except ValueError as error:
            return (*results, fault("rows", str(error)))
        if data is None:
            results += (note("rows", "not read, because the training rows are streamed"),)
        else:
            splits = data.splits
    return (*results, *check_suitability(recipe, facts, splits, progress=progress))


def check_facts(recipe: Recipe, facts: PreflightFacts) -> tuple[CheckResult, ...]:
    """Return the results of all checks; with a fault among them, a run would fail or wait
    forever."""
    cluster = facts.cluster
    results: list[CheckResult] = []
    if cluster is not None:
        results.append(ok("Ray", f"reachable, {counted(len(cluster.nodes), 'node')}"))
    elif facts.unreachable is not None:
        results.append(fault("Ray", facts.unreachable, AS_JOB))
    results += _tables(recipe, facts)
    results += _registry("registry", facts.written, recipe=recipe)
    for base_model in facts.base_models:
        results += _base_model(recipe, base_model)
    results += check_requests(recipe.evaluation, facts)
    results += facts.findings
    if cluster is None:
        text = "workers, their memory and the nodes' access to S3 were not checked"
        return (*results, note("nodes", text))
    results += _workers(recipe, cluster)
    results += check_evaluation(recipe, facts.model, cluster=cluster)
    results += _nodes(recipe, cluster)
    results += check_memory(recipe, facts, cluster)
    return tuple(results)


def _tables(recipe: Recipe, facts: PreflightFacts) -> Iterator[CheckResult]:
    """Check that this machine can read all data URIs and that they have the recipe's columns."""
    for table in facts.tables:
        if table.fault:
            yield fault(f"data.{table.split}", table.fault)  # the message includes the remedy
            continue
        if table.num_read < table.num_files:
            part = f" in the {table.num_read} files that were read"
        else:
            part = ""
        text = (
            f"{table.uri} has the columns; {table.num_rows:,} rows{part}, "
            f"{counted(table.num_files, 'file')}"
        )
        yield ok(f"data.{table.split}", text)
    train = sum(table.num_rows for table in facts.tables if table.split == "train")
    if train > MAX_ROWS_IN_MEMORY and recipe.data.validation is None:
        text = f"{train:,} training rows are streamed, which requires data.validation and data.test"
        yield fault("data.validation", text, "set both")


def check_requests(config: EvaluationConfig, facts: PreflightFacts) -> Iterator[CheckResult]:
    """State how many requests endpoints get, because they cost money and contain the texts of
    rows."""
    num_rows = sum(table.num_rows for table in facts.tables if table.split == "validation")

    def sentence(url: str, per_row: int) -> str:
        number = f"{per_row} for each validation row"
        if num_rows:
            number = f"{per_row * num_rows:,} for {num_rows:,} validation rows"
        return (
            f"{url} gets requests with the texts of rows: at most {number}, and more for test "
            "rows, unless the answers are stored"
        )

    called = [("champion", endpoint) for endpoint in facts.champion_endpoints]
    called += [("contender", endpoint) for endpoint in facts.contender_endpoints]
    for name, endpoint in called:
        remedy = (
            "to limit them, add a contender with an endpoint that has the model "
            f"{endpoint.model!r} and max_spend to evaluation.contenders"
        )
        yield note(name, sentence(endpoint.url, 1), remedy)
    for name, configured in config.endpoints.items():
        yield note(
            name,
            sentence(configured.url, config.requests_per_row),
            f"to limit them, set evaluation.contenders.{name}.endpoint.max_spend, or lower "
            "evaluation.prompt_draws",
        )


def _registry(name: str, written: WriteCheck, *, recipe: Recipe) -> Iterator[CheckResult]:
    headers = (("If-None-Match", written.refuses_second), ("If-Match", written.refuses_stale))
    ignored = " and ".join(header for header, is_honoured in headers if not is_honoured)
    if written.fault is not None:
        yield fault(
            name,
            written.fault,
            "create the bucket, or grant permission to write, read and delete there",
        )
    elif ignored:
        text = (
            f"{recipe.task_uri}: the S3 server ignores {ignored}, so two promotions at a time "
            "could both succeed"
        )
        yield fault(
            name, text, "use an S3 server with conditional writes, such as AWS S3 or SeaweedFS"
        )
    else:
        yield ok(name, f"{recipe.task_uri}: write, read, delete and conditional writes work")


def _base_model(recipe: Recipe, facts: BaseModelFacts) -> Iterator[CheckResult]:
    """Check that a base model is complete, suits the task, and supports the recipe's row length."""
    model = facts.metadata
    uri = facts.uri
    if model is None:
        yield fault("base model", facts.fault or f"{uri} was not checked")
        return
    faults: list[tuple[str, str]] = []
    rules = TASKS[recipe.task]
    if rules.has_classes:
        is_unfit = model.is_encoder_decoder
    else:
        is_unfit = not model.is_causal
    if is_unfit:
        faults.append(
            (
                f"{uri} is a {model.kind}, {rules.base_model_fault}",
                f"{rules.base_model_need}; change base_model",
            )
        )
    if model.template_error:
        faults.append(
            (
                model.template_error,
                "choose an instruction-tuned model, whose tokenizer has a chat template",
            )
        )
    if model.longest is not None and recipe.data.max_length > model.longest:
        text = (
            f"data.max_length {recipe.data.max_length} is more than {model.longest} tokens, the "
            f"maximum of {uri}"
        )
        faults.append((text, f"set data.max_length to {model.longest} or less"))
    if model.num_stored < LEAST_STORED * model.shape.num_parameters:
        text = (
            f"its files contain {model.num_stored:,} of {model.shape.num_parameters:,} parameters"
        )
        faults.append((f"{uri}: {text}", "store all of its safetensors files there, unquantised"))
    yield from (fault("base model", text, remedy) for text, remedy in faults)
    if not faults:
        if model.longest:
            length = f", rows of up to {model.longest:,} tokens"
        else:
            length = ""
        text = (
            f"{model.kind}, {model.shape.num_parameters:,} "
            f"parameters{length}{rules.base_model_note}"
        )
        text += f"; staged at {model.uri}"
        yield ok("base model", text)


def _workers(recipe: Recipe, cluster: Cluster) -> Iterator[CheckResult]:
    """Check that the workers fit the cluster, each on one node: its total and its free
    resources."""
    config = recipe.training
    worker = worker_resources(config)
    least = config.min_workers
    most = config.max_workers
    have = workers_that_fit((node.total for node in cluster.nodes), worker)
    wanted = (
        f"{counted(least, 'worker') if least == most else f'{least} to {most} workers'} of "
        f"{worker.text()}"
    )
    if have < least:
        yield _too_few(cluster, worker, wanted=wanted, have=have)
        return
    if have < most:
        fewer = f"; training uses the {have} of {most} that fit"
    else:
        fewer = ""
    yield ok("workers", f"room for {wanted} on {counted(len(cluster.nodes), 'node')}{fewer}")
    groups = recipe.tuning.trials_at_once(room=1)
    if groups * most > have:
        text = f"tuning.max_concurrent_trials is {groups}, but only {have // most} fit the cluster"
        text += ": the others wait up to half an hour for nodes that an autoscaler may add"
        yield note("trials", text)
    free = workers_that_fit((node.free for node in cluster.nodes), worker)
    text = (
        f"resources for {free} of {counted(least, 'worker')} are free now; {_held(cluster.holders)}"
    )
    if free >= least:
        if free >= UNBOUNDED:
            workers = "any number of workers"
        else:
            workers = counted(free, "worker")
        yield ok("free now", f"resources for {workers} are free")
    else:
        yield fault(
            "free now",
            text,
            "stop the actors and jobs that use them, wait until they end, or add nodes",
        )


def _too_few(cluster: Cluster, worker: Resources, *, wanted: str, have: int) -> CheckResult:
    largest = max(cluster.rooms, key=lambda room: (room.gpus, room.cpus), default=Resources(0))
    if not any(room.num_workers(worker) for room in cluster.rooms):
        text = f"there is no room for {wanted}: the largest node has {largest.text() or '0 CPUs'}"
        remedy = "lower training.cpus_per_worker or gpus_per_worker, or add larger nodes"
    else:
        text = f"there is no room for {wanted}: the cluster has room for {have}"
        remedy = "lower training.num_workers, set it to [min, max], or add nodes"
    remedy += "; if an autoscaler adds nodes, start them first and check again"
    return fault("workers", text, remedy)


def _held(holders: Sequence[Holder] | None) -> str:
    if holders is None:
        return "the users of the rest are unknown, because the dashboard does not answer"
    if not holders:
        return (
            "Ray lists no actor or job that uses the rest; it may be used by tasks that are ending"
        )
    return (
        f"used by {_listed([f'{holder.name} ({holder.resources.text()})' for holder in holders])}"
    )


def _nodes(recipe: Recipe, cluster: Cluster) -> Iterator[CheckResult]:
    """Check the reports of the nodes, which use the workers' credentials; merge equal faults into
    one result."""
    addresses = {node.id: node.address for node in cluster.nodes}
    for node, error in cluster.probe_errors.items():
        remedy = (
            "check the node, and that it has the packages and this code: in its image, or the code "
            "from a job with --working-dir"
        )
        yield fault(f"node {addresses[node]}", f"it could not be probed: {error}", remedy)
    faulty: dict[CheckResult, list[str]] = {}
    for node, report in cluster.reports.items():
        for result in _node_faults(report, recipe=recipe):
            faulty.setdefault(result, []).append(addresses[node])
    for result, names in faulty.items():
        yield replace(result, name=f"node {_listed(names)}")
    if not faulty and cluster.reports:
        text = f"{counted(len(cluster.reports), 'node')} probed: can import the training"
        yield ok("nodes", f"{text} and write to the registry")


def _node_faults(report: NodeReport, *, recipe: Recipe) -> Iterator[CheckResult]:
    for result in _registry("", report.written, recipe=recipe):
        if result.state == "fault":
            remedy = (
                f"{result.remedy}; workers use the credentials that Ray was started with on their "
                "node"
            )
            yield replace(result, remedy=remedy)


def _listed(names: Sequence[str]) -> str:
    if len(names) > NUM_LISTED:
        more = f" and {len(names) - NUM_LISTED} more"
    else:
        more = ""
    return ", ".join(names[:NUM_LISTED]) + more
