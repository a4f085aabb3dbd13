"""More training rows than fit in memory: Ray Data tokenizes them once, workers stream them, and a
run completes."""

import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from cluster.connection import connect
from cluster.local.stack import StackState
from cluster.progress import SILENT, NoteEvent, StepEvent
from tailorbird.config.recipe import Recipe
from tailorbird.data.loader import read_rows
from tailorbird.data.sharding import loading
from tailorbird.data.sharding.shards import Shards
from tailorbird.data.tokenize import labels_of
from tailorbird.pipeline.prepare import prepare
from tailorbird.pipeline.run import run_pipeline
from tests.integration.small import icd10_tables, small_recipe, stages, write_data, write_table
from tests.integration.training.test_faults import BATCH_SIZE, FaultInjector, config_of, ends, run
from tests.integration.training.test_training import worker_pid
from tests.progress import ProgressRecorder
from training.classification_task import ClassificationTrainingTask
from training.dataset import windows

pytestmark = pytest.mark.usefixtures("connected")

IN_MEMORY = 120


@pytest.fixture(scope="module")
def data(stack: StackState) -> str:
    """URI of the small recipe's rows, with training rows in three files. One file has a copy of a
    test row."""
    assert stack.s3_endpoint
    prefix = f"s3://lake/streamed-{uuid.uuid4().hex}"
    write_data(prefix)
    train, test = (icd10_tables()[name] for name in ("train", "test"))
    spread = np.linspace(1, train.num_rows - 2, 400).astype(np.int64)  # rows are ordered by chapter
    write_table(f"{prefix}/train/part-1.parquet", train.take(spread))
    write_table(f"{prefix}/train/part-2.parquet", test.slice(0, 1))
    return prefix


@pytest.fixture(scope="module", autouse=True)
def _few_rows_in_memory() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "MAX_ROWS_IN_MEMORY", IN_MEMORY)
        yield


@pytest.fixture(scope="module")
def recipe(data: str, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    overrides = (
        "data.max_train_rows=null",
        "tuning.num_trials=1",
        "tuning.space={}",
    )
    return small_recipe(
        tmp_path_factory.mktemp("streamed"), name="streamed", data=data, overrides=overrides
    )


@pytest.fixture(scope="module")
def few(recipe: Recipe, data: str) -> Recipe:
    """The same recipe with two of the files."""
    files = (f"{data}/train/part-1.parquet", f"{data}/train/part-2.parquet")
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": files})})


@pytest.fixture(scope="module")
def task(recipe: Recipe) -> ClassificationTrainingTask:
    """The training task with streamed rows."""
    with connect():
        task = prepare(recipe, progress=SILENT).task.training_task()
    assert isinstance(task, ClassificationTrainingTask)
    return replace(task, validation=task.validation.take(range(60)))


@pytest.mark.long
def test_a_run_on_streamed_rows_completes(few: Recipe) -> None:
    recorder = ProgressRecorder()
    with connect():
        result = run_pipeline(few, progress=recorder)
    data = result.evidence.data
    assert data.report.num_train == data.trained_on
    assert data.report.train_copies_of_test >= 1
    assert IN_MEMORY * 0.6 < (data.report.num_in_memory or 0) < IN_MEMORY * 1.6
    assert any("streamed" in event.text for event in recorder.of_kind(NoteEvent))
    step = recorder.of_kind(StepEvent)[-1]
    assert step.num_steps == -(-data.report.num_train // few.training.batch_size)
    before = stages(few.task_uri)
    assert sum("/shards-" in name for name in before) == 1
    with connect():
        run_pipeline(few, progress=SILENT)
    assert stages(few.task_uri) == before


def test_shards_contain_the_rows_that_would_be_in_memory(
    recipe: Recipe, task: ClassificationTrainingTask
) -> None:
    assert isinstance(task.train, Shards)
    in_memory = read_rows(*recipe.data.train_uris, config=recipe.data)
    sharded = task.train.read(task.train.chunks())
    known = set(sharded.row_ids)
    assert len(known) == len(task.train) == len(sharded) < len(in_memory)
    assert sharded.labels is not None
    assert task.train.classes == labels_of(in_memory.labels) == task.classes
    labels = {
        row_id: label
        for row_id, label in zip(in_memory.row_ids, in_memory.labels, strict=True)
        if row_id in known
    }
    assert labels == {
        row_id: task.classes[label]
        for row_id, label in zip(sharded.row_ids, sharded.labels, strict=True)
    }


@pytest.mark.long
def test_a_worker_killed_in_a_later_window_resumes_at_its_position(
    task: ClassificationTrainingTask,
) -> None:
    assert isinstance(task.train, Shards)
    small = replace(
        task, train=replace(task.train, window_rows=BATCH_SIZE)
    )  # a window then has the rows that are sorted together
    assert isinstance(small.train, Shards)
    sizes = [window.num_rows for window in windows(small.train, config_of(), epoch=0)]
    assert len(sizes) > 2
    plain, begun = ProgressRecorder(), sizes[0] // BATCH_SIZE
    killed = FaultInjector(lambda: os.kill(worker_pid(), signal.SIGKILL), epoch=0, step=begun + 10)
    run(config_of(epochs=1), small, recorder=plain)
    run(config_of(epochs=1, checkpoint_interval_s=4), small, recorder=killed)
    assert ends(killed) == ends(plain)


def test_the_error_for_an_invalid_row_has_its_position(recipe: Recipe, data: str) -> None:
    table = icd10_tables()["train"].slice(0, 500)
    texts = table["text"].to_pylist()
    texts[7] = None
    broken = f"{data}-broken/train.parquet"
    write_table(broken, table.set_column(table.schema.get_field_index("text"), "text", [texts]))
    broken_recipe = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"train": broken})}
    )
    with (
        connect(),
        pytest.raises(ValueError, match="column 'text' is null, first in row 7"),
    ):
        prepare(broken_recipe, progress=SILENT)
