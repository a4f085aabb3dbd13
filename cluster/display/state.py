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
            finished = state.finished
            if state.stage:
                finished = (*finished, (state.stage, now - state.since))
            return replace(
                state, stage=event.name, since=now, finished=finished, activity=activity, done=None
            )
        case PlanEvent(stages):
            return replace(state, plan=stages)
        case ActivityEvent(text):
            return replace(state, activity=text, done=None)
        case RowsEvent() | StepEvent():
            return replace(state, done=event)
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


def activity_line(state: State, *, now: float) -> str:
    """Return what the run does now, how long the stage has taken, and how long it is expected to
    take."""
    text = state.activity
    if isinstance(state.done, StepEvent):
        text = done_text(state.done)
    elif state.done is not None:
        text = f"{text}, {done_text(state.done)}"
    elapsed = duration(now - state.since)
    for stage in state.plan:
        if stage.name == state.stage:
            elapsed += f", expected {estimate(stage.seconds)}"
    return f"{text} ({state.stage or 'start'}: {elapsed})"


def done_text(event: RowsEvent | StepEvent) -> str:
    """Return the progress within a training or over rows, with the rate and the time left."""
    if isinstance(event, RowsEvent):
        left = event.seconds_left
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
    total = sum(stage.seconds for stage in event.stages)
    rows = [(stage.name, estimate(stage.seconds), stage.basis) for stage in event.stages]
    return [f"expected: {estimate(total)} ({event.text})", *table_lines(rows)]


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def duration(seconds: float) -> str:
    """Return an elapsed time, such as `8 s`, `3 min 20 s` or `1 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def estimate(seconds: float) -> str:
    """Return an expected time with one or two digits, such as `about 25 s`, `about 4 min` or `about
    2.5 h`."""
    if seconds < 55:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    if seconds < 3600:
        return f"about {max(1, round(seconds / 60))} min"
    return f"about {seconds / 3600:.1f} h"


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f", {estimate(seconds)} left"


def _config_text(config: Mapping[str, object]) -> str:
    texts = []
    for name, value in config.items():
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        texts.append(f"{name} {text}")
    return ", ".join(texts)
