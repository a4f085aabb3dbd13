"""Before a training: whether the validation rows rule out that any model gains the minimum over the
incumbent."""

from tailorbird.data.rows import Rows
from tailorbird.evaluation.baselines.baseline import Baseline, select_incumbent
from tailorbird.evaluation.report.evidence_files import VALIDATION
from tailorbird.evaluation.statistics.headroom import Headroom, headroom_of
from tailorbird.evaluation.statistics.scoring import HIGHEST_SCORE
from tailorbird.evaluation.trained_rows import trained_rows
from tailorbird.evaluation.verdict.explain import headroom_text
from tailorbird.pipeline.evaluate import stored_predictions
from tailorbird.pipeline.prepare import RunContext
from tailorbird.registry.versions import ModelVersion


def headroom_without_training(
    context: RunContext, baselines: tuple[Baseline, ...]
) -> Headroom | None:
    """Return what is left to gain over the incumbent if that is below the minimum gain, so that no
    training starts.

    Return None if a training starts: more may be left to gain, or the champion or contender that is
    the incumbent was trained or selected on validation rows, so that its score on them is too high.
    """
    protocol = context.protocol
    incumbent = select_incumbent(baselines)
    if HIGHEST_SCORE - incumbent.validation >= protocol.minimum_gain:
        return None
    version = context.champion or context.inputs.contenders.get(incumbent.kind)
    if version is not None and _may_know(version, context.splits.validation):
        return None
    assert incumbent.uri is not None  # servable baselines have artifacts
    table = stored_predictions(context, incumbent.uri, rows_name=VALIDATION)
    headroom = headroom_of(table, metric=protocol.metric, alpha=protocol.alpha)
    if headroom.most < protocol.minimum_gain:
        return headroom
    return None


def _may_know(version: ModelVersion, rows: Rows) -> bool:
    learned = trained_rows(rows, {"incumbent": version})
    return bool(learned.unknown or learned.excluded)


def no_training_line(context: RunContext, headroom: Headroom) -> str:
    """Return why no training starts, and what would start it."""
    protocol = context.protocol
    why = headroom_text(headroom, metric=protocol.metric, minimum_gain=protocol.minimum_gain)
    return f"no training is started: {why}; it would start with a lower minimum gain"
