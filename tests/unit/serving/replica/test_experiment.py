"""Which requests a challenger gets, and its shadow answers."""

import asyncio
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.replica import experiment
from serving.replica.experiment import ShadowRunner, TrafficSplit

shares = st.floats(0, 1)


@settings(max_examples=50, deadline=None)
@given(shares, st.text(max_size=8), st.text(max_size=8))
def test_about_the_share_of_the_units_is_included(share: float, digest: str, prefix: str) -> None:
    included = [TrafficSplit(digest, canary=share).includes("canary", f"{prefix}{number}") for number in range(4000)]
    assert sum(included) / len(included) == pytest.approx(share, abs=0.05)  # six standard errors


@given(shares, shares, st.text(), st.text())
def test_a_unit_that_is_included_stays_so_while_the_share_grows(
    first: float, second: float, digest: str, unit: str
) -> None:
    low, high = (TrafficSplit(digest, canary=share) for share in sorted((first, second)))
    assert low.includes("canary", unit) == TrafficSplit(digest, canary=low.canary).includes("canary", unit)
    assert high.includes("canary", unit) or not low.includes("canary", unit)


def test_a_share_of_0_includes_no_unit_and_of_1_all() -> None:
    units = [str(number) for number in range(200)]
    assert not any(TrafficSplit("d", shadow=1.0).includes("canary", unit) for unit in units)
    assert all(TrafficSplit("d", shadow=1.0).includes("shadow", unit) for unit in units)


def test_each_version_and_each_arm_has_an_assignment_of_its_own() -> None:
    units = [str(number) for number in range(4000)]

    def both(arm: list[bool], other_arm: list[bool]) -> float:
        return sum(first and second for first, second in zip(arm, other_arm, strict=True)) / len(units)

    first = [TrafficSplit("one", canary=0.5).includes("canary", unit) for unit in units]
    second = [TrafficSplit("two", canary=0.5).includes("canary", unit) for unit in units]
    shadow = [TrafficSplit("one", shadow=0.5).includes("shadow", unit) for unit in units]
    assert both(first, second) == pytest.approx(0.25, abs=0.05)
    assert both(first, shadow) == pytest.approx(0.25, abs=0.05)


def test_shadows_wait_for_a_quiet_moment_then_go_one_by_one_and_a_fault_stops_none() -> None:
    async def scenario() -> None:
        quiet, answered, running = False, [], 0
        shadows = ShadowRunner(lambda: quiet)

        async def answer(number: int) -> None:
            nonlocal running
            running += 1
            assert running == 1
            await shadows.quiet()
            await asyncio.sleep(0)
            running -= 1
            if number == 1:
                raise ValueError("cannot be answered")
            answered.append(number)

        for number in range(4):
            shadows.add(lambda number=number: answer(number), num_bytes=10)  # type: ignore[misc]
        await asyncio.sleep(3 * experiment.QUIET_S)
        assert answered == []
        quiet = True
        await asyncio.gather(*shadows._tasks)
        assert (answered, shadows.num_dropped) == ([0, 2, 3], 0)

    asyncio.run(scenario())


def test_what_does_not_fit_is_not_taken_and_what_was_answered_makes_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(experiment, "MAX_BYTES", 3 * (experiment.REQUEST_BYTES + 100))
    caplog.set_level("WARNING", logger="ray.serve")

    async def scenario() -> None:
        gate, numbers = asyncio.Event(), count()

        async def answer() -> None:
            await gate.wait()
            next(numbers)

        shadows = ShadowRunner(lambda: True)
        for _ in range(10):
            shadows.add(answer, num_bytes=100)
        assert (shadows.num_dropped, len(shadows._tasks)) == (7, 3)
        gate.set()
        await asyncio.gather(*shadows._tasks)
        shadows.add(answer, num_bytes=100)
        await asyncio.gather(*shadows._tasks)
        assert (next(numbers), shadows.num_dropped) == (4, 7)

    asyncio.run(scenario())
