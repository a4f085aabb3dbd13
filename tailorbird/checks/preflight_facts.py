"""Collect the facts that `preflight` checks: data, registry, base model and cluster."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.connection import connect
from cluster.node_probe import NodeReport, WriteCheck, check_writing, probe_nodes
from cluster.resources import Holder, Node, Resources, holders_or_none, live_nodes
from tailorbird.checks.planned_test import PlannedTest
from tailorbird.checks.result import CheckResult, fault, note
from tailorbird.config.data import DataConfig
from tailorbird.config.model_uri import ModelUri
from tailorbird.config.recipe import Recipe
from tailorbird.data.loader import SPLIT_FRACTIONS, read_test
from tailorbird.data.parquet import open_parquet, parquet_files, read_table
from tailorbird.data.task_data import DataTask, recipe_task
from tailorbird.evaluation.trained_rows import require_enough_rows, trained_rows
from tailorbird.models.base_model import stage_base_model
from tailorbird.models.endpoint.reachability import check_answering
from tailorbird.models.metadata import ModelMetadata, read_metadata, require_encoder
from tailorbird.pipeline.contender_models import stage_models
from tailorbird.pipeline.contenders import compared_versions, read_contenders
from tailorbird.pipeline.inputs import task_pooling
from tailorbird.registry.champion import champion_version, read_champion
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.hybrids import called_endpoints

FOOTERS = 16  # maximum footers to read of a folder of Parquet files: the first ones and the last
NUM_READERS = 8
MAX_PLANNED_ROWS = 2_000_000  # maximum rows whose documents are counted


@dataclass(frozen=True)
class Table:
    """A data URI, described by the footers of its Parquet files."""

    split: str
    uri: str
    num_rows: int = 0  # in the files whose footers were read
    num_files: int = 0
    num_read: int = 0
    fault: str | None = None


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process can join."""

    nodes: tuple[Node, ...]
    holders: tuple[Holder, ...] | None  # actors and jobs that use CPUs and GPUs; None if unknown
    reports: dict[str, NodeReport]  # by node id
    probe_errors: dict[str, str]  # reason for a missing report, by node id

    @property
    def rooms(self) -> list[Resources]:
        """The resources of each node."""
        return [node.total for node in self.nodes]


@dataclass(frozen=True)
class BaseModelFacts:
    """A base model of the recipe; one of `metadata` and `fault` is None."""

    uri: ModelUri
    metadata: ModelMetadata | None
    fault: str | None


@dataclass(frozen=True)
class PreflightFacts:
    """The facts that `preflight` checks."""

    unreachable: str | None  # reason why this process cannot join Ray
    cluster: Cluster | None  # None if it is unreachable, or not inspected on purpose
    tables: tuple[Table, ...]
    written: WriteCheck  # result of a write to the registry from this machine
    base_models: tuple[BaseModelFacts, ...]
    planned: PlannedTest | None = None  # the test rows; None if they cannot be read or are too many
    champion: str | None = None  # URI of the version that serves now
    champion_endpoints: tuple[Endpoint, ...] = ()
    """Endpoints of the champion and its parts; none if it cannot be read."""
    contender_endpoints: tuple[Endpoint, ...] = ()  # those of versions in `evaluation.contenders`
    findings: tuple[CheckResult, ...] = ()  # on endpoints, test rows and the encoder for retrieval

    @property
    def model(self) -> ModelMetadata | None:
        """The largest base model, which needs the most memory; None if one cannot be read."""
        read = [base.metadata for base in self.base_models if base.metadata is not None]
        if len(read) < len(self.base_models):
            return None
        return max(read, key=lambda model: model.shape.num_parameters)


def collect_facts(recipe: Recipe, *, without_cluster: bool = False) -> PreflightFacts:
    """Collect facts about data, registry, models and, unless `without_cluster`, cluster, from here
    and from each node.

    Like a run, stages the base model and the encoder for retrieval if they are not staged yet.
    """
    tables = inspect_tables(recipe)
    written = check_writing(recipe.task_uri)
    base_models = tuple(_base_model(uri, recipe) for uri in recipe.base_models)
    cluster = None
    unreachable = None
    if not without_cluster:
        cluster, unreachable = _or_fault(lambda: inspect_cluster(recipe.task_uri))
    planned, _ = _or_fault(lambda: planned_test(recipe, tables))
    stored, _ = _or_fault(lambda: read_champion(recipe.task_uri))
    served = _or_fault(lambda: champion_endpoints(recipe.task_uri))[0] or ()
    contenders, contender_fault = _or_fault(lambda: read_contenders(recipe))
    compared: list[Endpoint] = []
    for version in (contenders or {}).values():
        compared += called_endpoints(version)
    if contender_fault is None:
        _, contender_fault = _or_fault(lambda: stage_models(recipe))
    endpoints = [*served, *compared]
    endpoints += map(Endpoint.from_config, recipe.evaluation.endpoints.values())
    findings = [*endpoint_findings(endpoints)]
    if contender_fault is not None:
        findings.append(fault("contenders", contender_fault))
    elif planned is not None:
        findings += trained_rows_findings(recipe)
    findings += encoder_findings(recipe)
    return PreflightFacts(
        unreachable=unreachable,
        cluster=cluster,
        tables=tables,
        written=written,
        base_models=base_models,
        planned=planned,
        champion=None if stored is None else stored[0].uri,
        champion_endpoints=served,
        contender_endpoints=tuple(compared),
        findings=tuple(dict.fromkeys(findings)),
    )


def champion_endpoints(task_uri: str) -> tuple[Endpoint, ...]:
    """Return the endpoints that the champion and its parts call; none without a champion."""
    stored = read_champion(task_uri)
    if stored is None:
        return ()
    return called_endpoints(champion_version(stored[0]))


def endpoint_findings(endpoints: Sequence[Endpoint]) -> Iterator[CheckResult]:
    """Yield why an endpoint cannot be used from this process, and the warnings about those that
    answer."""
    remedy = (
        "or check where the driver of a run sends the requests: submit preflight as a job, as "
        "the run"
    )
    for endpoint in dict.fromkeys(endpoints):
        warning, reason = _or_fault(partial(check_answering, endpoint))
        if reason is not None:
            yield fault("endpoint", reason, remedy)
        if warning is not None:
            yield note("endpoint", warning)


def inspect_cluster(task_uri: str) -> Cluster:
    """Join the cluster, inspect and leave it; raise SessionError if it cannot be joined."""
    with connect():
        nodes = live_nodes()
        holders = holders_or_none()
        reports, errors = probe_nodes(nodes, task_uri=task_uri)
    return Cluster(nodes, holders=holders, reports=reports, probe_errors=errors)


def inspect_tables(recipe: Recipe) -> tuple[Table, ...]:
    """Inspect all data URIs of the recipe, in parallel."""
    config = recipe.data
    task = recipe_task(recipe)
    uris = [("train", uri) for uri in config.train_uris]
    uris += [
        (name, uri) for name in ("validation", "test") if (uri := getattr(config, name)) is not None
    ]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        return tuple(pool.map(lambda item: _table(*item, config=config, task=task), uris))


def planned_test(recipe: Recipe, tables: Sequence[Table]) -> PlannedTest | None:
    """Return the number of test rows and of their documents, from the column of these alone.

    Without `data.test`, the test rows are a share of the training rows. Return None if a table has
    a fault or too many rows.
    """
    config = recipe.data
    split, share = ("train", SPLIT_FRACTIONS[2]) if config.test is None else ("test", 1.0)
    chosen = [table for table in tables if table.split == split]
    num_rows = sum(table.num_rows for table in chosen)
    if (
        any(table.fault or table.num_read < table.num_files for table in tables)
        or not 0 < num_rows <= MAX_PLANNED_ROWS
    ):
        return None
    documents: set[str] = set()
    if config.split_by is not None:
        for table in chosen:
            read = read_table(table.uri, columns=(config.split_by,))
            documents.update(map(str, read[config.split_by].unique().to_pylist()))
    return PlannedTest(
        num_rows=max(1, min(round(num_rows * share), config.max_test_rows or num_rows)),
        split_by=config.split_by,
        num_documents=len(documents) or None,
    )


def trained_rows_findings(recipe: Recipe) -> Iterator[CheckResult]:
    """Yield what is known about test rows that the champion or a contender was trained on; a fault
    if too few others remain."""

    def sentences() -> tuple[str, ...]:
        versions = compared_versions(recipe)
        stored = read_champion(recipe.task_uri)
        if stored is not None:
            versions["incumbent"] = champion_version(stored[0])
        if not versions:
            return ()
        test = read_test(recipe.data, task=recipe_task(recipe))
        trained = trained_rows(test, versions)
        require_enough_rows(trained, num_test=len(test), config=recipe.evaluation)
        return trained.sentences(len(test))

    known, reason = _or_fault(sentences)
    yield from (note("test rows", sentence) for sentence in known or ())
    if reason is not None:
        yield fault("test rows", reason)


def encoder_findings(recipe: Recipe) -> Iterator[CheckResult]:
    """Yield a fault if the encoder for retrieval cannot be used."""
    uri = recipe.evaluation.retrieval_encoder
    if uri is None:
        return
    _, reason = _or_fault(
        lambda: require_encoder(stage_base_model(uri, registry=recipe.registry).uri)
    )
    if reason is not None:
        yield fault("retrieval encoder", reason)


def _base_model(uri: ModelUri, recipe: Recipe) -> BaseModelFacts:
    def read() -> ModelMetadata:
        staged = stage_base_model(uri, registry=recipe.registry).uri
        task_pooling(recipe, staged)  # raises PoolingError
        return read_metadata(staged, task=recipe_task(recipe))

    metadata, reason = _or_fault(read)
    return BaseModelFacts(uri, metadata, reason)


def _table(split: str, uri: str, *, config: DataConfig, task: DataTask) -> Table:
    columns = task.columns(config)
    try:
        files = parquet_files(uri)
        if len(files) <= FOOTERS:
            read = files
        else:
            read = [*files[: FOOTERS - 1], files[-1]]
        num_rows = 0
        for name in read:
            with open_parquet(name, columns=columns) as file:
                num_rows += file.metadata.num_rows
                task.require_types(file.schema_arrow, config=config, uri=name)
    except ValueError as error:
        return Table(split, uri, fault=str(error))
    if num_rows or len(read) < len(files):
        empty = None
    else:
        empty = f"{uri} has no rows; give a file with at least one row"
    return Table(split, uri, num_rows, num_files=len(files), num_read=len(read), fault=empty)


def _or_fault(act: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return the result of `act`, or the message of a user error."""
    try:
        return act(), None
    except (ValueError, OSError) as error:
        return None, str(error)
