"""`tailorbird preflight`: what would go wrong in a run, told before it costs anything, decided from collected facts."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from cluster.node_probe import NodeReport, WriteCheck
from cluster.requirements import ALWAYS, Package, fits
from cluster.resources import MAX_LISTED, Holder, Resources, worker_resources, workers_of_types, workers_that_fit
from tailorbird.checks.doctor import GIB
from tailorbird.checks.preflight_facts import Cluster, PreflightFacts, collect_facts, versions_match
from tailorbird.checks.result import CheckResult
from tailorbird.config.recipe import Recipe
from tailorbird.config.training import TrainingConfig
from training.memory_estimate import Batch, PackedBatch, WorkerMemory, worker_memory

RAY_KILLS_AT = 0.95
"""Share of a node's memory in use at which Ray ends workers on it."""
LEAST_STORED = 0.9
"""Share of a model's numbers that its files must hold: heads and poolers that nobody uses may be missing."""
SIZES = ("method", "batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "lora_r")
"""Fields of the training section that a sweep may vary and memory hangs on."""
LESS = (
    "lower data.max_length or training.batch_size, or give more gradient_accumulation_steps, gradient_checkpointing, "
    "method: lora, or more cpus_per_worker, so that fewer workers share a node"
)
"""What takes less memory."""
NAMED = 5


def check_recipe(recipe: Recipe) -> tuple[CheckResult, ...]:
    """Looks at everything that a run of the recipe needs, in a few seconds, and says what holds and what does not."""
    return check_facts(recipe, collect_facts(recipe))


def check_facts(recipe: Recipe, facts: PreflightFacts) -> tuple[CheckResult, ...]:
    """What there is to say of what was found; with a fault among it a run would fail, or wait for nothing."""
    lines = [*ray_lines(facts), *table_lines(recipe, facts), *_registry("registry", facts.written, recipe=recipe)]
    lines += model_lines(recipe, facts)
    cluster = facts.cluster
    if cluster is None:
        text = "workers, memory and the nodes' own access to S3 were not looked at: no cluster let us in"
        return (*lines, CheckResult("nodes", "fault", text, "mend what stands above, then run preflight again"))
    lines += [*worker_lines(recipe, cluster), *node_lines(recipe, facts, cluster)]
    return (*lines, *memory_lines(recipe, facts, cluster))


def ray_lines(facts: PreflightFacts) -> Iterator[CheckResult]:
    """Whether the cluster lets us in, and speaks our versions."""
    here, theirs = facts.here, facts.theirs
    versions = f"Ray {here.ray}, Python {here.python}"
    if facts.unreachable is not None:
        yield CheckResult("Ray", "fault", facts.unreachable)
        return
    if theirs is not None and not versions_match(here, theirs, any_patch=facts.any_patch):
        text = f"here {versions}; the cluster Ray {theirs.ray}, Python {theirs.python}: Ray lets no driver of others in"
        as_job = "submit it as a job, which runs with the cluster's own: ray job submit --working-dir . -- "
        yield CheckResult(
            "Ray", "fault", text, f"{as_job}python -m tailorbird preflight RECIPE; or install the same here"
        )
    else:
        nodes = _count(len(facts.cluster.nodes) if facts.cluster else 0, "node")
        yield CheckResult(
            "Ray", "ok", f"reached, {nodes}; {versions}, here and there" if theirs else f"reached, {nodes}; {versions}"
        )
    if theirs is not None:
        yield from _job_versions(facts, theirs.ray, python=theirs.python)


def _job_versions(facts: PreflightFacts, ray: str, *, python: str) -> Iterator[CheckResult]:
    """A job runs with the cluster's versions, which must be those that our code asks for."""
    wanted = dict(facts.wanted.packages[ALWAYS]).get("ray", "")
    if not fits(ray, wanted):
        text = f"the cluster runs Ray {ray}, wanted {wanted}"
        yield CheckResult("versions", "fault", text, "start the cluster with a Ray of these versions")
    if not fits(python, facts.wanted.python):
        text = f"the cluster runs Python {python}, wanted {facts.wanted.python}"
        yield CheckResult("versions", "fault", text, "build its image on a Python of these versions")


def table_lines(recipe: Recipe, facts: PreflightFacts) -> Iterator[CheckResult]:
    """Whether every data URI can be read from here, and has the columns that the recipe names."""
    for table in facts.tables:
        if table.fault:
            yield CheckResult(f"data.{table.split}", "fault", table.fault)  # which says what to do
            continue
        part = f" in the {table.num_looked} that were looked at" if table.num_looked < table.num_files else ""
        text = f"{table.uri} has the columns; {table.num_rows:,} rows{part}, {_count(table.num_files, 'file')}"
        yield CheckResult(f"data.{table.split}", "ok", text)
    train = sum(table.num_rows for table in facts.tables if table.split == "train")
    if train > recipe.data.stream_above_rows and recipe.data.validation is None:
        text = f"{train:,} training rows are streamed, and then data.validation and data.test must be named"
        yield CheckResult("data.validation", "fault", text, "name them, or raise data.stream_above_rows")


def _registry(name: str, written: WriteCheck, *, recipe: Recipe) -> Iterator[CheckResult]:
    if written.fault is not None:
        yield CheckResult(name, "fault", written.fault, "make the bucket, or allow to write, read and delete there")
        return
    ignored = [
        header
        for header, honoured in (("If-None-Match", written.refuses_second), ("If-Match", written.refuses_stale))
        if not honoured
    ]
    if ignored:
        text = f"{recipe.task_uri}: the store does not honour {' and '.join(ignored)}, so two promotions could both win"
        yield CheckResult(
            name, "fault", text, "take a store with conditional writes, as AWS S3 and SeaweedFS have them"
        )
    else:
        yield CheckResult(
            name, "ok", f"{recipe.task_uri} can be written, read and deleted, and conditional writes hold"
        )


def model_lines(recipe: Recipe, facts: PreflightFacts) -> Iterator[CheckResult]:
    """Whether the base model is whole, of a kind for the task, and reads as much as the recipe asks."""
    model, uri = facts.model, recipe.base_model
    if model is None:
        yield CheckResult("base model", "fault", facts.model_fault or f"{uri} was not looked at")
        return
    faults: list[tuple[str, str]] = []
    if recipe.task == "chat" and not model.is_causal:
        faults.append((f"{uri} is a {model.kind}, no causal language model", "name one that is for a chat task"))
    if recipe.task == "classification" and model.is_encoder_decoder:
        faults.append((f"{uri} is a {model.kind}, an encoder with a decoder", "name an encoder for a classification"))
    if model.template_error:
        faults.append((model.template_error, "name an instruction-tuned model, whose tokenizer has a chat template"))
    if model.longest is not None and recipe.data.max_length > model.longest:
        wanted, most = recipe.data.max_length, model.longest
        text = f"data.max_length {wanted} is more than the {most} tokens that a training row of {uri} may have"
        faults.append((text, f"set data.max_length to {model.longest} or less"))
    if model.num_stored < LEAST_STORED * model.shape.num_parameters:
        text = f"its files hold {model.num_stored:,} numbers of {model.shape.num_parameters:,} parameters"
        faults.append((f"{uri}: {text}", "put all of its safetensors there, not quantised"))
    for text, todo in faults:
        yield CheckResult("base model", "fault", text, todo)
    if not faults:
        reads = f", rows of up to {model.longest:,} tokens" if model.longest else ""
        template = ", its chat template tells turns apart" if recipe.task == "chat" else ""
        text = f"{model.kind}, {model.shape.num_parameters:,} parameters{reads}{template}; staged at {model.uri}"
        yield CheckResult("base model", "ok", text)


def worker_lines(recipe: Recipe, cluster: Cluster) -> Iterator[CheckResult]:
    """Whether there is room for the workers, each on one node: in all, and now."""
    config = recipe.training
    worker = worker_resources(config)
    least, most = config.min_workers, config.max_workers
    have = workers_that_fit((node.total for node in cluster.nodes), worker)
    scaled = max(have, workers_of_types(cluster.node_types, worker)) if cluster.node_types else have
    wanted = f"{_count(least, 'worker') if least == most else f'{least} to {most} workers'} of {_room(worker)}"
    if scaled < least:
        yield CheckResult("workers", "fault", *_too_few(cluster, worker, wanted=wanted, have=scaled))
        return
    grows = f"; {have} now, the autoscaler may bring nodes for {_many(scaled)}" if scaled > have else ""
    fewer = f"; there is room for {_many(scaled)} of {most}, with which it trains" if scaled < most else ""
    yield CheckResult("workers", "ok", f"room for {wanted} on {_count(len(cluster.nodes), 'node')}{fewer}{grows}")
    groups = recipe.tuning.trials_at_once(room=1)
    if groups * most > scaled:
        text = f"tuning.max_concurrent_trials asks for {groups} at a time, there is room for {scaled // most}"
        text += ": the others wait half an hour for nodes, which an autoscaler may bring that tells nothing here"
        yield CheckResult("trials", "note", text)
    free = workers_that_fit((node.free for node in cluster.nodes), worker)
    if free >= least:
        yield CheckResult("free now", "ok", f"room for {_many(free)} such workers is free")
        return
    text = f"room for {free} of {_count(least, 'worker')} is free now; {_held(cluster.holders)}"
    if scaled > have:
        yield CheckResult(
            "free now", "note", f"{text}. A run waits for what is missing, which the autoscaler may bring"
        )
    else:
        yield CheckResult("free now", "fault", text, "end what holds them, wait for it, or add nodes")


def _too_few(cluster: Cluster, worker: Resources, *, wanted: str, have: int) -> tuple[str, str]:
    rooms = [node.total for node in cluster.nodes] + [kind.resources for kind in cluster.node_types or ()]
    largest = max(rooms, key=lambda room: (room.gpus, room.cpus), default=Resources(0))
    if not any(room.num_workers(worker) for room in rooms):
        text = f"there is no room for {wanted}: no node holds one, the largest has {_room(largest)}"
        todo = "lower training.cpus_per_worker or gpus_per_worker, or add larger nodes"
    else:
        text = f"there is no room for {wanted}: the cluster holds {have}"
        todo = "lower training.num_workers, give it as {min, max}, or add nodes"
    if cluster.node_types is None and any(probe.in_kubernetes for probe in cluster.looks.values()):
        text += ". Whether an autoscaler of this Kubernetes cluster would bring more cannot be known from within Ray"
        todo += "; where one would, start the nodes first (minReplicas) and run preflight again"
    elif cluster.node_types is None:
        text += "; no autoscaler tells of more"
    return text, todo


def _held(holders: Sequence[Holder] | None) -> str:
    if holders is None:
        return "what holds the rest cannot be told: the dashboard does not answer"
    if not holders:
        return "nothing that Ray names holds the rest; tasks that end may"
    names = [f"{holder.name} ({_room(holder.resources)})" for holder in holders[:NAMED]]
    more = f" and {len(holders) - NAMED} more" if len(holders) > NAMED else ""
    return f"held by {', '.join(names)}{more}"


def node_lines(recipe: Recipe, facts: PreflightFacts, cluster: Cluster) -> Iterator[CheckResult]:
    """What the nodes themselves see, with the credentials that workers have; what is alike is told once."""
    addresses = {node.id: node.address for node in cluster.nodes}
    for node, why in cluster.silent.items():
        todo = "see that the node is well and has this code: in its image, or by a job with --working-dir"
        yield CheckResult(f"node {addresses[node]}", "fault", f"it could not be looked from: {why}", todo)
    faulty: dict[CheckResult, list[str]] = {}
    for node, probe in cluster.looks.items():
        for fault in _faults_of(probe, recipe=recipe, facts=facts):
            faulty.setdefault(fault, []).append(addresses[node])
    for fault, named in faulty.items():
        nodes = ", ".join(named[:NAMED]) + (f" and {len(named) - NAMED} more" if named[NAMED:] else "")
        yield CheckResult(f"node {nodes}", fault.state, fault.message, fault.remedy)
    if not faulty and cluster.looks:
        text = f"{_count(len(cluster.looks), 'node')} looked from: data and model can be read, the registry be written"
        yield CheckResult("nodes", "ok", f"{text}, and the packages fit")


def _faults_of(probe: NodeReport, *, recipe: Recipe, facts: PreflightFacts) -> Iterator[CheckResult]:
    for why in probe.unread.values():
        yield CheckResult(
            "", "fault", why, "give the nodes' role or environment, in which Ray is started, access to it"
        )
    for line in _registry("", probe.written, recipe=recipe):
        if line.state == "fault":
            yield CheckResult(
                "", "fault", line.message, f"{line.remedy}; workers have what Ray was started with on their node"
            )
    wanted = facts.wanted.packages[ALWAYS]
    wrong = [p for name, versions in wanted if not (p := Package(name, versions, probe.packages.get(name))).fits]
    if wrong:
        text = "; ".join(f"{p.name} is {p.installed or 'not installed'}, wanted {p.wanted or 'any'}" for p in wrong)
        yield CheckResult("", "fault", text, "install them in the nodes' image")
    if not fits(probe.versions.python, facts.wanted.python):
        text = f"it runs Python {probe.versions.python}, wanted {facts.wanted.python}"
        yield CheckResult("", "fault", text, "build the nodes' image on another Python")


def memory_lines(recipe: Recipe, facts: PreflightFacts, cluster: Cluster) -> Iterator[CheckResult]:
    """Whether the workers that a node may get fit in its memory, and one in a GPU's."""
    if facts.model is None:
        yield CheckResult(
            "memory", "fault", "not estimated: the base model could not be read", "mend what stands above"
        )
        return
    config, total = recipe.training, sum(node.total.cpus for node in cluster.nodes)
    worker = worker_resources(config)
    fit = max(1, int(total) // (config.max_workers * config.cpus_per_worker))
    most = recipe.tuning.trials_at_once(room=fit) * config.max_workers
    looked = [(node, cluster.looks[node.id]) for node in cluster.nodes if node.id in cluster.looks]
    autocast = any(probe.bfloat16 for _, probe in looked) or config.gpus_per_worker > 0
    needed = worst_memory(recipe, facts, autocast=autocast)
    parts = ", ".join(f"{name} {_size(size)}" for name, size in needed.host.items() if size >= GIB // 100)
    short = []
    for node, probe in looked:
        there = min(most, node.total.num_workers(worker))
        allowed = max(0, probe.free_bytes - int((1 - RAY_KILLS_AT) * probe.memory_bytes))
        if there * needed.host_bytes > allowed:
            short.append(f"{node.address} has {_size(allowed)} free for {there}")
    text = f"up to about {_size(needed.host_bytes)} a worker ({parts})"
    if short:
        yield CheckResult("memory", "fault", f"{text}; {', '.join(short[:NAMED])}", LESS)
    elif looked:
        yield CheckResult("memory", "ok", f"{text}; every node has enough for as many as it may get")
    else:
        yield CheckResult("memory", "note", f"{text}; what the nodes have could not be looked at")
    yield from _gpu_memory(needed, [size for _, probe in looked for size in probe.gpu_bytes])


def _gpu_memory(needed: WorkerMemory, sizes: Sequence[int]) -> Iterator[CheckResult]:
    if not needed.device:
        return
    text = f"up to about {_size(needed.device_bytes)} of a GPU"
    if not sizes:
        yield CheckResult(
            "GPU memory", "note", f"{text}; what the GPUs have was not told (nvidia-smi on the nodes says it)"
        )
    elif needed.device_bytes > min(sizes):
        yield CheckResult("GPU memory", "fault", f"{text}; the smallest has {_size(min(sizes))}", LESS)
    else:
        yield CheckResult("GPU memory", "ok", f"{text}; the smallest has {_size(min(sizes))}")


def worst_memory(recipe: Recipe, facts: PreflightFacts, *, autocast: bool) -> WorkerMemory:
    """What a worker takes of all that the sweep may try, and with the fewest workers, which hold the most each."""
    assert facts.model is not None
    batch = (PackedBatch if recipe.task == "chat" else Batch)(recipe.data.max_length, autocast=autocast)
    estimates = [
        worker_memory(config, shape=facts.model.shape, batch=batch, num_workers=config.min_workers)
        for config in tried_configs(recipe)
    ]
    return max(estimates, key=lambda estimate: (estimate.device_bytes, estimate.host_bytes))


def tried_configs(recipe: Recipe) -> list[TrainingConfig]:
    """The training section with each combination of what the sweep may set and memory hangs on."""
    space = recipe.tuning.space
    varied: dict[str, Any] = {name: space[name].choice for name in SIZES if name in space and space[name].choice}
    plain = recipe.training.model_dump()
    drawn = product(*varied.values())
    return [TrainingConfig.model_validate(plain | dict(zip(varied, values, strict=True))) for values in drawn]


def _room(room: Resources) -> str:
    cpus = _count(room.cpus, "CPU")
    return f"{cpus} and {_count(room.gpus, 'GPU')}" if room.gpus else cpus


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def _many(number: int) -> str:
    return "any number" if number >= MAX_LISTED else str(number)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"
