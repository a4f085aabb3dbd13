"""Before it costs anything: everything that `check_recipe` decides on is looked at here, and nothing is decided."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cluster import resources
from cluster.connection import connect
from cluster.node_probe import NodeReport, ProbeRequest, WriteCheck, check_writing, probe_nodes
from cluster.requirements import ALWAYS, Requirements, requirements
from cluster.resources import Holder, Node, NodeType, Versions
from tailorbird.config.data import DataConfig
from tailorbird.config.recipe import Recipe
from tailorbird.data.parquet import open_parquet, parquet_files
from tailorbird.data.tasks import DataTask, data_task
from tailorbird.models.base_model import stage_base_model
from tailorbird.models.metadata import ModelMetadata, read_metadata

FOOTERS = 16
"""Parquet files of a folder whose footers are read: the first and the last among them."""
NUM_READERS = 8
PATCH_COUNTS = "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"
"""Ray's variable, which says `minor` where another patch version of Python will do."""


@dataclass(frozen=True)
class Table:
    """A data URI, by the footers of its Parquet files."""

    split: str
    uri: str
    num_rows: int = 0
    """In the files that were looked at."""
    num_files: int = 0
    num_looked: int = 0
    file: str | None = None
    """One of them, for the nodes to read."""
    fault: str | None = None


@dataclass(frozen=True)
class Cluster:
    """A Ray that let us in."""

    nodes: tuple[Node, ...]
    node_types: tuple[NodeType, ...] | None
    """What an autoscaler may start; None where nobody tells."""
    holders: tuple[Holder, ...] | None
    """What holds CPUs and GPUs; None where the dashboard does not answer."""
    looks: dict[str, NodeReport]
    """By a node's id."""
    silent: dict[str, str]
    """Why a node gave no look, by its id."""


@dataclass(frozen=True)
class PreflightFacts:
    """What was looked at."""

    wanted: Requirements
    here: Versions
    theirs: Versions | None
    """Of the cluster; None where they cannot be told."""
    any_patch: bool
    """Whether Ray was told that another patch version of Python will do."""
    unreachable: str | None
    """Why Ray could not be joined."""
    cluster: Cluster | None
    tables: tuple[Table, ...]
    written: WriteCheck
    """What came of writing in the registry from here."""
    model: ModelMetadata | None
    model_fault: str | None


def collect_facts(recipe: Recipe) -> PreflightFacts:
    """At the cluster, from each of its nodes, at the data, the registry and the base model, which is staged if it is
    not yet, as a run would do first."""
    tables, written = inspect_tables(recipe), check_writing(recipe.task_uri)
    model, model_fault = _or_fault(lambda: _model(recipe))
    address = os.environ.get("RAY_ADDRESS", "")
    here = resources.local_versions()
    theirs = _versions(address)
    cluster, unreachable = None, None
    if versions_match(here, theirs, any_patch=_any_patch()):
        request = ProbeRequest(
            data=tuple(table.file for table in tables if table.file and table.file.startswith("s3://")),
            task_uri=recipe.task_uri,
            base_model=model.uri if model else None,
            packages=tuple(name for name, _ in requirements().packages[ALWAYS]),
        )
        cluster, unreachable = _or_fault(lambda: inspect_cluster(request))
    return PreflightFacts(
        wanted=requirements(),
        here=here,
        theirs=theirs,
        any_patch=_any_patch(),
        unreachable=unreachable,
        cluster=cluster,
        tables=tables,
        written=written,
        model=model,
        model_fault=model_fault,
    )


def versions_match(here: Versions, theirs: Versions | None, *, any_patch: bool) -> bool:
    """Whether Ray lets a driver of these versions in: the same Ray, and the same Python, to its patch or its minor."""
    if theirs is None:
        return True
    parts = 2 if any_patch else 3
    return here.ray == theirs.ray and here.python.split(".")[:parts] == theirs.python.split(".")[:parts]


def inspect_cluster(request: ProbeRequest) -> Cluster:
    """Joins the cluster for a moment; raises SessionError where it cannot."""
    with connect():
        nodes = resources.live_nodes()
        node_types, held = resources.reported_node_types(), None
        with suppress(Exception):  # whatever the dashboard or the way to it raises: work is done without it
            held = resources.holders()
        looks, silent = probe_nodes(nodes, request)
    if node_types is None:
        node_types = next((one.node_types for one in looks.values() if one.node_types), None)
    return Cluster(nodes, node_types, held, looks, silent)


def inspect_tables(recipe: Recipe) -> tuple[Table, ...]:
    """Every data URI that the recipe names, several at a time."""
    config = recipe.data
    named = [("train", uri) for uri in config.train_uris]
    named += [(name, uri) for name in ("validation", "test") if (uri := getattr(config, name)) is not None]
    task = data_task(recipe.task)
    with ThreadPoolExecutor(NUM_READERS) as pool:
        return tuple(pool.map(lambda one: _table(*one, config=config, task=task), named))


def _model(recipe: Recipe) -> ModelMetadata:
    staged = stage_base_model(recipe.base_model, registry=recipe.registry)
    return read_metadata(staged, task=data_task(recipe.task, system=recipe.data.system))


def _table(split: str, uri: str, *, config: DataConfig, task: DataTask) -> Table:
    columns = task.columns(config)
    try:
        files = parquet_files(uri)
        looked = files if len(files) <= FOOTERS else [*files[: FOOTERS - 1], files[-1]]
        num_rows = 0
        for name in looked:
            with open_parquet(name, columns=columns) as file:
                num_rows += file.metadata.num_rows
                task.require_types(file.schema_arrow, config=config, uri=name)
    except ValueError as error:
        return Table(split, uri, fault=str(error))
    fault = None if num_rows or len(looked) < len(files) else f"{uri} has no rows; give a file with at least one row"
    return Table(split, uri, num_rows, num_files=len(files), num_looked=len(looked), file=files[0], fault=fault)


def _versions(address: str) -> Versions | None:
    """What the cluster runs; None where it does not say: joining it tells why, in words of its own."""
    with suppress(Exception):  # whatever Ray raises for a token, a name or an answer that is none
        return resources.cluster_versions(address)
    return None


def _any_patch() -> bool:
    return os.environ.get(PATCH_COUNTS) == "minor"


def _or_fault(act: Callable[[], Any]) -> tuple[Any, str | None]:
    """What it gives, or the message of what the user can mend."""
    try:
        return act(), None
    except (ValueError, OSError) as error:
        return None, str(error)
