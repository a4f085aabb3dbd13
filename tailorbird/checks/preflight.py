"""`tailorbird preflight`: what would go wrong in a run, told before it costs anything, decided from what was found."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from cluster.node_probe import NodeLook, Written
from cluster.requirements import ALWAYS, Package, fits
from cluster.resources import MANY, Holder, Room, workers_of_types, workers_that_fit
from tailorbird.checks.doctor import GIB, Line
from tailorbird.checks.preflight_facts import Cluster, Found, look, may_join
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


def check_recipe(recipe: Recipe) -> tuple[Line, ...]:
    """Looks at everything that a run of the recipe needs, in a few seconds, and says what holds and what does not."""
    return check(recipe, look(recipe))


def check(recipe: Recipe, found: Found) -> tuple[Line, ...]:
    """What there is to say of what was found; with a fault among it a run would fail, or wait for nothing."""
    lines = [*ray_lines(found), *table_lines(recipe, found), *_registry("registry", found.written, recipe=recipe)]
    lines += model_lines(recipe, found)
    cluster = found.cluster
    if cluster is None:
        text = "workers, memory and the nodes' own access to S3 were not looked at: no cluster let us in"
        return (*lines, Line("nodes", "fault", text, "mend what stands above, then run preflight again"))
    lines += [*worker_lines(recipe, cluster), *node_lines(recipe, found, cluster)]
    return (*lines, *memory_lines(recipe, found, cluster))


def ray_lines(found: Found) -> Iterator[Line]:
    """Whether the cluster lets us in, and speaks our versions."""
    here, theirs = found.here, found.theirs
    told = f"Ray {here.ray}, Python {here.python}"
    if found.unreachable is not None:
        yield Line("Ray", "fault", found.unreachable)
        return
    if theirs is not None and not may_join(here, theirs, any_patch=found.any_patch):
        text = f"here {told}; the cluster Ray {theirs.ray}, Python {theirs.python}: Ray lets no driver of others in"
        as_job = "submit it as a job, which runs with the cluster's own: ray job submit --working-dir . -- "
        yield Line("Ray", "fault", text, f"{as_job}python -m tailorbird preflight RECIPE; or install the same here")
    else:
        nodes = _count(len(found.cluster.nodes) if found.cluster else 0, "node")
        yield Line("Ray", "ok", f"reached, {nodes}; {told}, here and there" if theirs else f"reached, {nodes}; {told}")
    if theirs is not None:
        yield from _job_versions(found, theirs.ray, python=theirs.python)


def _job_versions(found: Found, ray: str, *, python: str) -> Iterator[Line]:
    """A job runs with the cluster's versions, which must be those that our code asks for."""
    wanted = dict(found.wanted.packages[ALWAYS]).get("ray", "")
    if not fits(ray, wanted):
        text = f"the cluster runs Ray {ray}, wanted {wanted}"
        yield Line("versions", "fault", text, "start the cluster with a Ray of these versions")
    if not fits(python, found.wanted.python):
        text = f"the cluster runs Python {python}, wanted {found.wanted.python}"
        yield Line("versions", "fault", text, "build its image on a Python of these versions")


def table_lines(recipe: Recipe, found: Found) -> Iterator[Line]:
    """Whether every data URI can be read from here, and has the columns that the recipe names."""
    for table in found.tables:
        if table.fault:
            yield Line(f"data.{table.split}", "fault", table.fault)  # which says what to do
            continue
        part = f" in the {table.num_looked} that were looked at" if table.num_looked < table.num_files else ""
        text = f"{table.uri} has the columns; {table.num_rows:,} rows{part}, {_count(table.num_files, 'file')}"
        yield Line(f"data.{table.split}", "ok", text)
    train = sum(table.num_rows for table in found.tables if table.split == "train")
    if train > recipe.data.stream_above_rows and recipe.data.validation is None:
        text = f"{train:,} training rows are streamed, and then data.validation and data.test must be named"
        yield Line("data.validation", "fault", text, "name them, or raise data.stream_above_rows")


def _registry(name: str, written: Written, *, recipe: Recipe) -> Iterator[Line]:
    if written.fault is not None:
        yield Line(name, "fault", written.fault, "make the bucket, or allow to write, read and delete there")
        return
    ignored = [
        header
        for header, honoured in (("If-None-Match", written.refuses_second), ("If-Match", written.refuses_stale))
        if not honoured
    ]
    if ignored:
        text = f"{recipe.task_uri}: the store does not honour {' and '.join(ignored)}, so two promotions could both win"
        yield Line(name, "fault", text, "take a store with conditional writes, as AWS S3 and SeaweedFS have them")
    else:
        yield Line(name, "ok", f"{recipe.task_uri} can be written, read and deleted, and conditional writes hold")


def model_lines(recipe: Recipe, found: Found) -> Iterator[Line]:
    """Whether the base model is whole, of a kind for the task, and reads as much as the recipe asks."""
    model, uri = found.model, recipe.base_model
    if model is None:
        yield Line("base model", "fault", found.model_fault or f"{uri} was not looked at")
        return
    faults: list[tuple[str, str]] = []
    if recipe.task == "chat" and not model.is_causal:
        faults.append((f"{uri} is a {model.kind}, no causal language model", "name one that is for a chat task"))
    if recipe.task == "classification" and model.is_encoder_decoder:
        faults.append((f"{uri} is a {model.kind}, an encoder with a decoder", "name an encoder for a classification"))
    if model.template:
        faults.append((model.template, "name an instruction-tuned model, whose tokenizer has a chat template"))
    if model.longest is not None and recipe.data.max_length > model.longest:
        asked, most = recipe.data.max_length, model.longest
        text = f"data.max_length {asked} is more than the {most} tokens that a training row of {uri} may have"
        faults.append((text, f"set data.max_length to {model.longest} or less"))
    if model.num_stored < LEAST_STORED * model.shape.num_parameters:
        text = f"its files hold {model.num_stored:,} numbers of {model.shape.num_parameters:,} parameters"
        faults.append((f"{uri}: {text}", "put all of its safetensors there, not quantised"))
    for text, todo in faults:
        yield Line("base model", "fault", text, todo)
    if not faults:
        reads = f", rows of up to {model.longest:,} tokens" if model.longest else ""
        template = ", its chat template tells turns apart" if recipe.task == "chat" else ""
        text = f"{model.kind}, {model.shape.num_parameters:,} parameters{reads}{template}; staged at {model.uri}"
        yield Line("base model", "ok", text)


def worker_lines(recipe: Recipe, cluster: Cluster) -> Iterator[Line]:
    """Whether there is room for the workers, each on one node: in all, and now."""
    config = recipe.training
    worker = Room(config.cpus_per_worker, config.gpus_per_worker)
    least, most = config.min_workers, config.max_workers
    have = workers_that_fit((node.has for node in cluster.nodes), worker)
    scaled = max(have, workers_of_types(cluster.node_types, worker)) if cluster.node_types else have
    asked = f"{_count(least, 'worker') if least == most else f'{least} to {most} workers'} of {_room(worker)}"
    if scaled < least:
        yield Line("workers", "fault", *_too_few(cluster, worker, asked=asked, have=scaled))
        return
    grows = f"; {have} now, the autoscaler may bring nodes for {_many(scaled)}" if scaled > have else ""
    fewer = f"; there is room for {_many(scaled)} of {most}, with which it trains" if scaled < most else ""
    yield Line("workers", "ok", f"room for {asked} on {_count(len(cluster.nodes), 'node')}{fewer}{grows}")
    groups = recipe.tuning.trials_at_once(room=1)
    if groups * most > scaled:
        text = f"tuning.max_concurrent_trials asks for {groups} at a time, there is room for {scaled // most}"
        text += ": the others wait half an hour for nodes, which an autoscaler may bring that tells nothing here"
        yield Line("trials", "note", text)
    free = workers_that_fit((node.free for node in cluster.nodes), worker)
    if free >= least:
        yield Line("free now", "ok", f"room for {_many(free)} such workers is free")
        return
    text = f"room for {free} of {_count(least, 'worker')} is free now; {_held(cluster.holders)}"
    if scaled > have:
        yield Line("free now", "note", f"{text}. A run waits for what is missing, which the autoscaler may bring")
    else:
        yield Line("free now", "fault", text, "end what holds them, wait for it, or add nodes")


def _too_few(cluster: Cluster, worker: Room, *, asked: str, have: int) -> tuple[str, str]:
    rooms = [node.has for node in cluster.nodes] + [one.has for one in cluster.node_types or ()]
    largest = max(rooms, key=lambda room: (room.gpus, room.cpus), default=Room(0))
    if not any(room.holds(worker) for room in rooms):
        text = f"there is no room for {asked}: no node holds one, the largest has {_room(largest)}"
        todo = "lower training.cpus_per_worker or gpus_per_worker, or add larger nodes"
    else:
        text = f"there is no room for {asked}: the cluster holds {have}"
        todo = "lower training.num_workers, give it as {min, max}, or add nodes"
    if cluster.node_types is None and any(one.in_kubernetes for one in cluster.looks.values()):
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
    told = [f"{one.what} ({_room(one.room)})" for one in holders[:NAMED]]
    more = f" and {len(holders) - NAMED} more" if len(holders) > NAMED else ""
    return f"held by {', '.join(told)}{more}"


def node_lines(recipe: Recipe, found: Found, cluster: Cluster) -> Iterator[Line]:
    """What the nodes themselves see, with the credentials that workers have; what is alike is told once."""
    addresses = {node.id: node.address for node in cluster.nodes}
    for node, why in cluster.silent.items():
        todo = "see that the node is well and has this code: in its image, or by a job with --working-dir"
        yield Line(f"node {addresses[node]}", "fault", f"it could not be looked from: {why}", todo)
    told: dict[Line, list[str]] = {}
    for node, one in cluster.looks.items():
        for line in _faults_of(one, recipe=recipe, found=found):
            told.setdefault(line, []).append(addresses[node])
    for line, places in told.items():
        where = ", ".join(places[:NAMED]) + (f" and {len(places) - NAMED} more" if places[NAMED:] else "")
        yield Line(f"node {where}", line.state, line.text, line.todo)
    if not told and cluster.looks:
        text = f"{_count(len(cluster.looks), 'node')} looked from: data and model can be read, the registry be written"
        yield Line("nodes", "ok", f"{text}, and the packages fit")


def _faults_of(one: NodeLook, *, recipe: Recipe, found: Found) -> Iterator[Line]:
    for why in one.unread.values():
        yield Line("", "fault", why, "give the nodes' role or environment, in which Ray is started, access to it")
    for line in _registry("", one.written, recipe=recipe):
        if line.state == "fault":
            yield Line("", "fault", line.text, f"{line.todo}; workers have what Ray was started with on their node")
    wanted = found.wanted.packages[ALWAYS]
    wrong = [p for name, versions in wanted if not (p := Package(name, versions, one.packages.get(name))).fits]
    if wrong:
        text = "; ".join(f"{p.name} is {p.found or 'not installed'}, wanted {p.wanted or 'any'}" for p in wrong)
        yield Line("", "fault", text, "install them in the nodes' image")
    if not fits(one.versions.python, found.wanted.python):
        text = f"it runs Python {one.versions.python}, wanted {found.wanted.python}"
        yield Line("", "fault", text, "build the nodes' image on another Python")


def memory_lines(recipe: Recipe, found: Found, cluster: Cluster) -> Iterator[Line]:
    """Whether the workers that a node may get fit in its memory, and one in a GPU's."""
    if found.model is None:
        yield Line("memory", "fault", "not estimated: the base model could not be read", "mend what stands above")
        return
    config, total = recipe.training, sum(node.has.cpus for node in cluster.nodes)
    worker = Room(config.cpus_per_worker, config.gpus_per_worker)
    fit = max(1, int(total) // (config.max_workers * config.cpus_per_worker))
    most = recipe.tuning.trials_at_once(room=fit) * config.max_workers
    looked = [(node, cluster.looks[node.id]) for node in cluster.nodes if node.id in cluster.looks]
    autocast = any(one.bfloat16 for _, one in looked) or config.gpus_per_worker > 0
    needed = worst_memory(recipe, found, autocast=autocast)
    told = ", ".join(f"{name} {_size(size)}" for name, size in needed.host.items() if size >= GIB // 100)
    short = []
    for node, one in looked:
        there = min(most, node.has.holds(worker))
        allowed = max(0, one.free_bytes - int((1 - RAY_KILLS_AT) * one.memory_bytes))
        if there * needed.host_bytes > allowed:
            short.append(f"{node.address} has {_size(allowed)} free for {there}")
    text = f"up to about {_size(needed.host_bytes)} a worker ({told})"
    if short:
        yield Line("memory", "fault", f"{text}; {', '.join(short[:NAMED])}", LESS)
    elif looked:
        yield Line("memory", "ok", f"{text}; every node has enough for as many as it may get")
    else:
        yield Line("memory", "note", f"{text}; what the nodes have could not be looked at")
    yield from _gpu_memory(needed, [size for _, one in looked for size in one.gpu_bytes])


def _gpu_memory(needed: WorkerMemory, sizes: Sequence[int]) -> Iterator[Line]:
    if not needed.device:
        return
    text = f"up to about {_size(needed.device_bytes)} of a GPU"
    if not sizes:
        yield Line("GPU memory", "note", f"{text}; what the GPUs have was not told (nvidia-smi on the nodes says it)")
    elif needed.device_bytes > min(sizes):
        yield Line("GPU memory", "fault", f"{text}; the smallest has {_size(min(sizes))}", LESS)
    else:
        yield Line("GPU memory", "ok", f"{text}; the smallest has {_size(min(sizes))}")


def worst_memory(recipe: Recipe, found: Found, *, autocast: bool) -> WorkerMemory:
    """What a worker takes of all that the sweep may try, and with the fewest workers, which hold the most each."""
    assert found.model is not None
    batch = (PackedBatch if recipe.task == "chat" else Batch)(recipe.data.max_length, autocast=autocast)
    estimates = [
        worker_memory(config, shape=found.model.shape, batch=batch, num_workers=config.min_workers)
        for config in tried_sections(recipe)
    ]
    return max(estimates, key=lambda one: (one.device_bytes, one.host_bytes))


def tried_sections(recipe: Recipe) -> list[TrainingConfig]:
    """The training section with each combination of what the sweep may set and memory hangs on."""
    space = recipe.tuning.space
    varied: dict[str, Any] = {name: space[name].choice for name in SIZES if name in space and space[name].choice}
    plain = recipe.training.model_dump()
    drawn = product(*varied.values())
    return [TrainingConfig.model_validate(plain | dict(zip(varied, one, strict=True))) for one in drawn]


def _room(room: Room) -> str:
    cpus = _count(room.cpus, "CPU")
    return f"{cpus} and {_count(room.gpus, 'GPU')}" if room.gpus else cpus


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def _many(number: int) -> str:
    return "any number" if number >= MANY else str(number)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"
