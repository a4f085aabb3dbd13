"""The queue of a hybrid classifier: routing, and the other part's answers when a part fails or has
timed out repeatedly."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from serving.engines.classify import Prediction
from serving.http.schemas import RequestError
from serving.hybrid.classifier_queue import HybridQueue, failing_together
from serving.hybrid.part_state import COOL_DOWN_S, MAX_TIMEOUTS, PartState
from tailorbird.registry.hybrid_routing import Routing

CASCADE = Routing(by="cascade", threshold=0.5)
BY_SEX = Routing(by="group", column="sex", values=("f",))
SURE = {"sure": 0.9, "unsure": 0.2}
ROWS = [("sure", "m"), ("unsure", "f"), ("unsure", None), ("sure", "f")]
BROKEN = RequestError(503, "engine_stopped", "it stopped")


class Part:
    """A part whose label is its name, and which fails with an error or never answers."""

    def __init__(self, name: str, *, error: Exception | None = None, hangs: bool = False) -> None:
        self.name, self.error, self.hangs = name, error, hangs
        self.texts: list[str] = []

    async def submit(self, rows: Sequence[str], *, client: str) -> list[Prediction]:
        assert client == "c"
        self.texts += rows
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return [Prediction(self.name, SURE[text], np.array([SURE[text]])) for text in rows]


def queue_of(
    first: Part,
    second: Part,
    *,
    routing: Routing = CASCADE,
    timeout_s: float = 0.05,
    **options: Any,
) -> HybridQueue:
    parts = [
        getattr(part, "submit_each", None) or failing_together(part.submit)
        for part in (first, second)
    ]
    return HybridQueue(*parts, version="hybrid-1", routing=routing, timeout_s=timeout_s, **options)


def answered(first: Part, second: Part, *, routing: Routing = CASCADE) -> list[tuple[str, bool]]:
    """Return the part that answered each of `ROWS`, and whether it was a fallback."""
    queue = queue_of(first, second, routing=routing)
    predictions = asyncio.run(queue.submit(ROWS, client="c"))
    assert [prediction.label for prediction in predictions] == [
        prediction.answered_by for prediction in predictions
    ]
    return [(str(prediction.answered_by), prediction.is_fallback) for prediction in predictions]


def parts_of(names: str, *, fallbacks: str = "") -> list[tuple[str, bool]]:
    """Return the expected answers: a letter for the part of each row, and the rows of fallbacks."""
    parts = {"1": "first", "2": "second"}
    return [(parts[name], str(row) in fallbacks) for row, name in enumerate(names)]


@pytest.mark.parametrize(
    "fault", [{"error": BROKEN}, {"error": RuntimeError("no memory")}, {"hangs": True}]
)
def test_if_a_part_is_away_the_other_part_answers_and_says_so(fault: dict[str, Any]) -> None:
    first = Part("first")
    second = Part("second")
    no_first = Part("first", **fault)
    no_second = Part("second", **fault)
    assert answered(first, no_second) == parts_of("1111", fallbacks="12")
    assert answered(no_first, second) == parts_of("2222", fallbacks="0123")
    assert answered(first, no_second, routing=BY_SEX) == parts_of("1111", fallbacks="13")
    assert answered(no_first, second, routing=BY_SEX) == parts_of("2222", fallbacks="02")
    for routing in (CASCADE, BY_SEX):
        with pytest.raises(RequestError) as caught:
            answered(no_first, no_second, routing=routing)
        assert caught.value.status == 503


def test_an_error_of_the_request_is_raised_unchanged() -> None:
    busy = RequestError(429, "busy", "too many texts")
    for first, second in (
        (Part("first", error=busy), Part("second")),
        (Part("first"), Part("second", error=busy)),
    ):
        with pytest.raises(RequestError) as caught:
            answered(first, second)
        assert caught.value is busy


REFUSED = RequestError(400, "endpoint_refused", "content")


class EndpointPart(Part):
    """A part whose texts, in order, have these errors; None for the prediction."""

    def __init__(self, name: str, *, errors: list[RequestError | None]) -> None:
        super().__init__(name)
        self.errors = errors

    async def submit_each(
        self, rows: Sequence[str], *, client: str, timeout_s: float
    ) -> Sequence[Prediction | RequestError]:
        assert timeout_s == 0.05
        predictions = await self.submit(rows, client=client)
        return [self.errors.pop(0) or prediction for prediction in predictions]


@pytest.mark.parametrize("error", [BROKEN, REFUSED])
def test_only_the_texts_that_fail_are_answered_by_the_other_part(error: RequestError) -> None:
    second = EndpointPart("second", errors=[error, None])
    assert answered(Part("first"), second) == parts_of("1121", fallbacks="1")
    first = EndpointPart("first", errors=[None, None, error, None])
    assert answered(first, Part("second")) == parts_of("1221", fallbacks="2")
    second = EndpointPart("second", errors=[None, error])
    assert answered(Part("first"), second, routing=BY_SEX) == parts_of("1211", fallbacks="3")


def test_a_text_that_both_parts_refuse_is_named() -> None:
    first = EndpointPart("first", errors=[None, REFUSED, None, None])
    second = EndpointPart("second", errors=[None, REFUSED])
    with pytest.raises(RequestError) as caught:
        answered(first, second)
    assert (caught.value.status, caught.value.param) == (400, "input")
    assert "input[1]" in caught.value.message


def test_the_parts_are_unloaded_after_the_last_request() -> None:
    is_unloaded = asyncio.Event()
    during: list[bool] = []

    class Waiting(Part):
        async def submit(self, rows: Sequence[str], *, client: str) -> list[Prediction]:
            queue.unload()
            during.append(is_unloaded.is_set())
            return await super().submit(rows, client=client)

    queue = queue_of(Part("first"), Waiting("second"), unload_parts=is_unloaded.set)
    asyncio.run(queue.submit(ROWS[:1], client="c"))
    assert not is_unloaded.is_set()
    asyncio.run(queue.submit(ROWS, client="c"))
    assert (during, is_unloaded.is_set()) == ([False], True)


@pytest.mark.parametrize("routing", [CASCADE, BY_SEX])
def test_a_part_that_times_out_repeatedly_is_skipped(routing: Routing) -> None:
    first, second = Part("first"), Part("second", hangs=True)
    queue = queue_of(first, second, routing=routing)

    async def scenario() -> None:
        for _ in range(MAX_TIMEOUTS):
            await queue.submit(ROWS, client="c")
        second.texts.clear()
        predictions = await queue.submit(ROWS, client="c")
        assert {prediction.answered_by for prediction in predictions} == {"first"}
        assert sum(prediction.is_fallback for prediction in predictions) == 2

    asyncio.run(scenario())
    assert second.texts == []


LATE = RequestError(504, "endpoint_timeout", "late")


def test_only_time_outs_in_a_row_make_a_part_absent_and_one_more_is_enough_after_the_cool_down() -> (
    None
):
    now = 0.0
    part = PartState("second", version="v", clock=lambda: now)
    for error in [LATE] * (MAX_TIMEOUTS - 1) + [RuntimeError("no memory")] * MAX_TIMEOUTS:
        part.failed(error)
    assert not part.is_away
    part.answered()
    part.failed(LATE)
    assert not part.is_away
    for _ in range(MAX_TIMEOUTS - 1):
        part.failed(TimeoutError())
    assert part.is_away
    now = COOL_DOWN_S
    assert not part.is_away
    part.failed(LATE)
    assert part.is_away
    part.answered()
    assert not part.is_away
