"""A call of a Ray task reports what the task waits for, and the task reports to its run."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray

from cluster import event_queue, remote
from cluster.progress import ActivityEvent, NoteEvent, RowsEvent, byte_reporter, current_progress
from cluster.remote import map_remote, run_remote
from cluster.resources import Holder, Resources
from tests.progress import ProgressRecorder

HOLDERS = (Holder("tailorbird run a.yaml", Resources(2)),)


def add(first: int, second: int) -> int:
    current_progress().activity(f"adding {first} and {second}")
    return first + second


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Run tasks in this process. The state of a task is requested as often as the list has values:
    true if it waits."""
    states: list[bool] = []

    def task(function: object) -> SimpleNamespace:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=function))

    monkeypatch.setattr(ray, "remote", task)
    monkeypatch.setattr(ray, "get", lambda result: result)
    monkeypatch.setattr(
        ray, "wait", lambda results, **_: ([], results) if states else (results, [])
    )
    monkeypatch.setattr(remote, "is_waiting", lambda _: states.pop(0))
    monkeypatch.setattr(remote, "holders_or_none", lambda: HOLDERS)
    return states


def test_a_wait_is_reported_once_with_the_holders_of_the_cpus(waits: list[bool]) -> None:
    waits += [True, True, False]
    recorder = ProgressRecorder()
    assert run_remote(add, resources=Resources(1), progress=recorder)(1, 2) == 3
    assert recorder.events[1:] == [
        ActivityEvent("waiting for 1 CPU, held by `tailorbird run a.yaml` (2 CPUs)"),
        ActivityEvent("the task has started"),
    ]


def test_a_task_that_starts_at_once_reports_only_its_own_progress(waits: list[bool]) -> None:
    recorder = ProgressRecorder()
    assert waits == []
    assert run_remote(add, resources=Resources(1), progress=recorder)(1, 2) == 3
    assert recorder.events == [ActivityEvent("adding 1 and 2")]


@pytest.mark.parametrize(("gpus", "max_calls"), [(0, None), (0.5, 1), (1, 1)])
def test_the_process_of_a_task_with_gpus_ends_with_the_task(
    monkeypatch: pytest.MonkeyPatch, gpus: float, max_calls: int | None
) -> None:
    created = []

    def remote_of_ray(*args: Any, **options: Any) -> Any:
        created.append(options.get("max_calls"))
        return ray_remote(*args, **options)

    ray_remote = ray.remote
    monkeypatch.setattr(ray, "remote", remote_of_ray)
    run_remote(add, resources=Resources(1, gpus))
    assert created == [max_calls]


def test_items_are_mapped_in_order_and_an_error_keeps_its_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def task(function: Callable[..., Any]) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *args: partial(function, *args))

    def get(result: Any) -> Any:
        try:
            return result()
        except ValueError as error:
            raise ray.exceptions.RayTaskError("int", "traceback", error) from None

    cancelled: list[object] = []
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "remote", lambda **_: task)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "cancel", cancelled.append)
    assert list(map_remote(int, ["3", "1", "2"])) == [3, 1, 2]
    assert list(map_remote(int, ["7"])) == [7]
    assert cancelled == []
    with pytest.raises(ValueError, match="invalid literal"):
        list(map_remote(int, ["1", "x", "2"]))
    assert len(cancelled) == 1


@pytest.mark.parametrize("is_initialized", [True, False])
def test_a_lost_event_queue_is_reported_unless_ray_is_shut_down(
    monkeypatch: pytest.MonkeyPatch, is_initialized: bool
) -> None:
    def get(_: object) -> None:
        raise ray.exceptions.RayActorError

    monkeypatch.setattr(
        event_queue, "ray", MagicMock(get=get, is_initialized=lambda: is_initialized)
    )
    monkeypatch.setattr(event_queue, "this_node_selector", dict)
    recorder = ProgressRecorder()
    with event_queue.forward_events(recorder):
        pass
    assert len(recorder.of_kind(NoteEvent)) == is_initialized


def test_bytes_are_reported_in_mb_after_each_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, clock = ProgressRecorder(), iter([0.0, 0.5, 2.0, 3.0])
    monkeypatch.setattr("cluster.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    report = byte_reporter(recorder)
    for text, done in (
        ("checking a", 1),
        ("checking a", 2 * 10**6),
        ("checking a", 4 * 10**6),
        ("checking b", 1),
    ):
        report(text, done, 8 * 10**6)
    expected = [
        ActivityEvent("checking a"),
        RowsEvent(4, 8, 2.0, unit="MB"),
        ActivityEvent("checking b"),
    ]
    assert recorder.events == expected
