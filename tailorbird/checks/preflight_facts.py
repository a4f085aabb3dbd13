"""Collect the facts that `preflight` decides on: data, registry, base model and cluster."""

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

FOOTERS = 16  # parquet files of a folder whose footers are read: the first ones and the last
NUM_READERS = 8
MATCH_LEVEL = "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"
"""Ray's environment variable; `minor` allows another patch version of Python."""


@dataclass(frozen=True)
class Table:
    """A data URI, by the footers of its Parquet files."""

    split: str
    uri: str
    num_rows: int = 0  # in the files whose footers were read
    num_files: int = 0
    num_read: int = 0
    file: str | None = None  # one of them, for the nodes to read
    fault: str | None = None


@dataclass(frozen=True)
class Cluster:
    """A Ray that this process could join."""

    nodes: tuple[Node, ...]
    node_types: tuple[NodeType, ...] | None  # what an autoscaler may start; None if none reports it
    holders: tuple[Holder, ...] | None  # what holds CPUs and GPUs; None if the dashboard does not answer
    reports: dict[str, NodeReport]  # by node id
    probe_errors: dict[str, str]  # why there is no report, by node id


@dataclass(frozen=True)
class PreflightFacts:
    wanted: Requirements
    here: Versions
    theirs: Versions | None  # the cluster's; None if it does not report them
    any_patch: bool  # true if Ray allows another patch version of Python
    unreachable: str | None  # why Ray could not be joined
    cluster: Cluster | None
    tables: tuple[Table, ...]
    written: WriteCheck  # result of writing in the registry from this machine
    model: ModelMetadata | None
    model_fault: str | None


def collect_facts(recipe: Recipe) -> PreflightFacts:
    """Collect facts on data, registry, base model and cluster, from here and from each node.

    The base model is staged if it is not yet, as a run would do first.
    """
    tables, written = inspect_tables(recipe), check_writing(recipe.task_uri)
    model, model_fault = _or_fault(lambda: _model(recipe))
    wanted, here, any_patch = requirements(), resources.local_versions(), os.environ.get(MATCH_LEVEL) == "minor"
    theirs = None
    with suppress(Exception):  # whatever Ray raises for a token, a name or an answer: `connect` has a message for it
        theirs = resources.cluster_versions(os.environ.get("RAY_ADDRESS", ""))
    cluster, unreachable = None, None
    if versions_match(here, theirs, any_patch=any_patch):
        request = ProbeRequest(
            data=tuple(table.file for table in tables if table.file and table.file.startswith("s3://")),
            task_uri=recipe.task_uri,
            base_model=model.uri if model else None,
            packages=tuple(name for name, _ in wanted.packages[ALWAYS]),
        )
        cluster, unreachable = _or_fault(lambda: inspect_cluster(request))
    return PreflightFacts(
        wanted, here, theirs, any_patch, unreachable, cluster, tables, written, model=model, model_fault=model_fault
    )


def versions_match(here: Versions, theirs: Versions | None, *, any_patch: bool) -> bool:
    """Return True if Ray lets in a driver of these versions: the same Ray and Python, up to the patch version."""
    if theirs is None:
        return True
    parts = 2 if any_patch else 3
    return here.ray == theirs.ray and here.python.split(".")[:parts] == theirs.python.split(".")[:parts]


def inspect_cluster(request: ProbeRequest) -> Cluster:
    """Join the cluster for a moment; raise SessionError if that fails."""
    with connect():
        nodes = resources.live_nodes()
        node_types, holders = resources.reported_node_types(), None
        with suppress(Exception):  # whatever the dashboard or the way to it raises: a run needs none
            holders = resources.holders()
        reports, errors = probe_nodes(nodes, request)
    if node_types is None:
        node_types = next((report.node_types for report in reports.values() if report.node_types), None)
    return Cluster(nodes, node_types, holders, reports, errors)


def inspect_tables(recipe: Recipe) -> tuple[Table, ...]:
    """Read every data URI that the recipe names, several at a time."""
    config, task = recipe.data, data_task(recipe.task)
    uris = [("train", uri) for uri in config.train_uris]
    uris += [(name, uri) for name in ("validation", "test") if (uri := getattr(config, name)) is not None]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        return tuple(pool.map(lambda item: _table(*item, config=config, task=task), uris))


def _model(recipe: Recipe) -> ModelMetadata:
    staged = stage_base_model(recipe.base_model, registry=recipe.registry)
    return read_metadata(staged, task=data_task(recipe.task, system=recipe.data.system))


def _table(split: str, uri: str, *, config: DataConfig, task: DataTask) -> Table:
    columns = task.columns(config)
    try:
        files = parquet_files(uri)
        read = files if len(files) <= FOOTERS else [*files[: FOOTERS - 1], files[-1]]
        num_rows = 0
        for name in read:
            with open_parquet(name, columns=columns) as file:
                num_rows += file.metadata.num_rows
                task.require_types(file.schema_arrow, config=config, uri=name)
    except ValueError as error:
        return Table(split, uri, fault=str(error))
    fault = None if num_rows or len(read) < len(files) else f"{uri} has no rows; give a file with at least one row"
    return Table(split, uri, num_rows, num_files=len(files), num_read=len(read), file=files[0], fault=fault)


def _or_fault(act: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return what `act` returns, or the message of an error that the user can fix."""
    try:
        return act(), None
    except (ValueError, OSError) as error:
        return None, str(error)
