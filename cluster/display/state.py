"""The state of a run that its progress events lead to, and its description as text. All functions
are pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.progress import (
    ActivityEvent,
    EpochEvent,
    PlanEvent,
    PlannedStage,
    ProgressEvent,
    RowsEvent,
    ScoreEvent,
    StageEvent,
    StepEvent,
    TrialEvent,
)

LEARNING_CURVE = "learning curve"  # name of the stage


@dataclass(frozen=True)
class Row:
    """A contender in the table of scores: a baseline, a trial or a seed run."""

    name: str
    status: str = ""  # of a trial
    score: float | None = None  # on the validation rows, after the latest epoch
    epochs: int = 0
    text: str = ""  # configuration of a trial, settings of a baseline


@dataclass(frozen=True)
class State:
    """What a run has done so far. Times are in seconds of one monotonic clock."""

    stage: str = ""  # empty before the first stage
    since: float = 0.0  # start of the current stage
    finished: tuple[tuple[str, float], ...] = ()  # names of the finished stages, with their seconds
    plan: tuple[PlannedStage, ...] = ()
    rows: Mapping[str, Row] = field(default_factory=dict)  # by contender
    activity: str = "starting"
    done: RowsEvent | StepEvent | None = None  # progress of the activity


def next_state(state: State, event: ProgressEvent, *, now: float) -> State:
    """Return the state after an event at the time `now`."""
    match event:
        case StageEvent():
            activity = event.text.removeprefix(f"{event.name}: ")
            if event.name == state.stage:
                return replace(state, activity=activity, done=None)
            if state.stage:
                finished = (*state.finished, (state.stage, now - state.since))
            else:
                finished = state.finished
            return replace(
                state, stage=event.name, since=now, finished=finished, activity=activity, done=None
            )
        case PlanEvent(stages):
            return replace(state, plan=stages)
        case ActivityEvent(text):
            return replace(state, activity=text, done=None)
        case RowsEvent() | StepEvent():
            return replace(state, done=event)
    if state.stage != LEARNING_CURVE:  # its trainings, on some of the rows, are no contenders
        state = replace(state, rows=updated_rows(state.rows, event))
    if isinstance(event, TrialEvent) and event.status == "training":
        return replace(state, activity=f"{trial_name(event.trial)}: starting", done=None)
    if isinstance(event, EpochEvent):
        return replace(state, activity=f"{epoch_name(event)} is finished", done=None)
    return state


def updated_rows(rows: Mapping[str, Row], event: ProgressEvent) -> Mapping[str, Row]:
    """Return the rows after an event. Only events of a contender change them."""
    match event:
        case ScoreEvent(contender, score, text):
            row = Row(contender, score=score, text=text)
        case EpochEvent():
            name = training_name(event)
            row = replace(rows.get(name) or Row(name), score=event.score, epochs=event.epoch + 1)
        case TrialEvent(trial, config, status):
            name = trial_name(trial)
            row = replace(rows.get(name) or Row(name), status=status, text=_config_text(config))
        case _:
            return rows
    return {**rows, row.name: row}


def sorted_rows(rows: Mapping[str, Row]) -> list[Row]:
    """Return the rows with the best score first, and those without a score last."""
    return sorted(
        rows.values(), key=lambda row: -1.0 if row.score is None else row.score, reverse=True
    )


def stage_lines(state: State, *, now: float) -> list[tuple[str, str, str]]:
    """Return the finished, current and planned stages: mark, name, and elapsed and expected
    time."""
    planned = {stage.name: stage for stage in state.plan}
    lines = []
    for name, seconds in state.finished:
        lines.append(("✓", name, f"{duration(seconds)}{_of_expected(planned.get(name))}"))
    if state.stage:
        lines.append(
            (
                "▸",
                state.stage,
                f"{duration(now - state.since)}{_of_expected(planned.get(state.stage))}",
            )
        )
    past = {name for _, name, _ in lines}
    return [
        *lines,
        *(
            (" ", stage.name, estimate(stage.seconds))
            for stage in state.plan
            if stage.name not in past
        ),
    ]


def activity_line(state: State, *, now: float) -> str:
    """Return what the run does now, how long the stage has taken, and how long it is expected to
    take."""
    in_stage = f"{duration(now - state.since)}{_of_expected(_planned(state))}"
    texts = [] if isinstance(state.done, StepEvent) else [state.activity]
    if state.done is not None:
        texts.append(done_text(state.done))
    return f"{', '.join(texts)} ({state.stage or 'start'}: {in_stage})"


def done_text(event: RowsEvent | StepEvent) -> str:
    """Return the progress within a training or over rows, with the rate and the time left."""
    if isinstance(event, RowsEvent):
        if event.rows_per_second:
            left = (event.total - event.done) / event.rows_per_second
        else:
            left = None
        speed_text = rate(event.rows_per_second, unit=event.unit)
        return f"{event.done:,}/{event.total:,} {event.unit}, {speed_text}{_left(left)}"
    return (
        f"{epoch_name(event)}, step {event.step}/{event.num_steps}, "
        f"{speed(event)}{_left(event.seconds_left)}"
    )


def epoch_name(event: EpochEvent | StepEvent) -> str:
    return f"{training_name(event)} epoch {event.epoch + 1}"


def training_name(event: EpochEvent | StepEvent) -> str:
    if event.trial is None:
        return f"seed {event.seed}"
    return trial_name(event.trial)


def trial_name(trial: str) -> str:
    """Return the name of a trial in all output for people; the end of its id is enough within a
    sweep."""
    return f"trial {trial[-5:]}"


def speed(event: EpochEvent | StepEvent) -> str:
    return f"loss {event.loss:.3f}, {rate(event.rows_per_second)}"


def rate(per_second: float, *, unit: str = "rows") -> str:
    if per_second >= 1:
        return f"{per_second:.0f} {unit}/s"
    return f"{per_second:.2g} {unit}/s"


def plan_lines(event: PlanEvent) -> list[str]:
    """Return the expected total and a line for each planned stage."""
    known = [stage.seconds for stage in event.stages if stage.seconds is not None]
    if known:
        total = f"expected: {estimate(sum(known))}"
    else:
        total = "expected: unknown"
    names = [stage.name for stage in event.stages if stage.seconds is None]
    without = f", without {' and '.join(names)}" if known and names else ""
    return [
        f"{total}{without} ({event.text})",
        *table_lines(
            [(stage.name, estimate(stage.seconds), stage.basis) for stage in event.stages]
        ),
    ]


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def duration(seconds: float) -> str:
    """Return an elapsed time, such as `8 s`, `3 min 20 s` or `1 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def estimate(seconds: float | None) -> str:
    """Return an expected time with one or two digits, such as `about 25 s`, `about 4 min` or `about
    2.5 h`."""
    if seconds is None:
        return "unknown"
    if seconds < 55:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    if seconds < 3600:
        return f"about {max(1, round(seconds / 60))} min"
    return f"about {seconds / 3600:.1f} h"


def _planned(state: State) -> PlannedStage | None:
    return next((stage for stage in state.plan if stage.name == state.stage), None)


def _of_expected(stage: PlannedStage | None) -> str:
    if stage is None or stage.seconds is None:
        return ""
    return f", expected {estimate(stage.seconds)}"


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f", {estimate(seconds)} left"


def _config_text(config: Mapping[str, object]) -> str:
    texts = {
        name: f"{value:.3g}" if isinstance(value, float) else str(value)
        for name, value in config.items()
    }
    return ", ".join(f"{name} {text}" for name, text in texts.items())
