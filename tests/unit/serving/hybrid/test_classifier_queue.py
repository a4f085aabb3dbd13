"""The queue of a hybrid classifier: routing, and the other part's answers when a part fails."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from serving.engines.classify import Prediction
from serving.http.schemas import RequestError
from serving.hybrid.classifier_queue import HybridQueue
from tailorbird.registry.routing import Routing

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


def answered(first: Part, second: Part, *, routing: Routing = CASCADE) -> list[tuple[str, bool]]:
    """Return the part that answered each of `ROWS`, and whether it was a fallback."""
    queue = HybridQueue(first.submit, second.submit, routing=routing, timeout_s=0.05)
    predictions = asyncio.run(queue.submit(ROWS, client="c"))
    assert [prediction.label for prediction in predictions] == [prediction.answered_by for prediction in predictions]
    return [(str(prediction.answered_by), prediction.is_fallback) for prediction in predictions]


def test_the_second_part_of_a_cascade_gets_only_the_texts_below_the_threshold() -> None:
    first, second = Part("first"), Part("second")
    assert answered(first, second) == [("first", False), ("second", False), ("second", False), ("first", False)]
    assert (first.texts, second.texts) == (["sure", "unsure", "unsure", "sure"], ["unsure", "unsure"])


def test_by_group_each_part_gets_the_texts_of_its_groups() -> None:
    first, second = Part("first"), Part("second")
    routed = [("first", False), ("second", False), ("first", False), ("second", False)]
    assert answered(first, second, routing=BY_SEX) == routed
    assert (first.texts, second.texts) == (["sure", "unsure"], ["unsure", "sure"])


@pytest.mark.parametrize("fault", [{"error": BROKEN}, {"error": RuntimeError("no memory")}, {"hangs": True}])
def test_if_a_part_is_away_the_other_part_answers_and_says_so(fault: dict[str, object]) -> None:
    def broken(name: str) -> Part:
        part = Part(name)
        for field, value in fault.items():
            setattr(part, field, value)
        return part

    kept = [("first", False), ("first", True), ("first", True), ("first", False)]
    assert answered(Part("first"), broken("second")) == kept
    assert answered(broken("first"), Part("second")) == [("second", True)] * 4
    by_group = [("first", False), ("first", True), ("first", False), ("first", True)]
    assert answered(Part("first"), broken("second"), routing=BY_SEX) == by_group
    by_group = [("second", True), ("second", False), ("second", True), ("second", False)]
    assert answered(broken("first"), Part("second"), routing=BY_SEX) == by_group
    for routing in (CASCADE, BY_SEX):
        with pytest.raises(RequestError, match="no part of the hybrid answers") as caught:
            answered(broken("first"), broken("second"), routing=routing)
        assert caught.value.status == 503


def test_an_error_of_the_request_is_raised_unchanged() -> None:
    busy = RequestError(429, "busy", "too many texts")
    for parts in ((Part("first", error=busy), Part("second")), (Part("first"), Part("second", error=busy))):
        with pytest.raises(RequestError) as caught:
            answered(*parts)
        assert caught.value is busy
