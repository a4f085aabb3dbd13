"""The stage of a run that mixes the fine-tuned classifier with the bag of words."""

from collections.abc import Sequence
from dataclasses import dataclass

from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.mix import mix_with_bag
from tailorbird.evaluation.mix_weight import MixRecord
from tailorbird.evaluation.report.sentences import mix_sentence
from tailorbird.pipeline.artifacts import Contender
from tailorbird.pipeline.prepare import RunContext
from tailorbird.registry.kinds import spec_of


@dataclass(frozen=True)
class MixResult:
    """The fine-tuned classifier, mixed with the bag of words if the mix scores higher on
    validation."""

    candidate: Contender
    record: MixRecord | None  # None without a bag of words, as for chat tasks


def mix_candidate(
    context: RunContext, unmixed: Contender, *, baselines: Sequence[Baseline]
) -> MixResult:
    """Mix a calibrated candidate with the run's bag of words; a cached stage. The result is not
    calibrated."""
    bag_uri = next(
        (baseline.uri for baseline in baselines if baseline.kind == "bag_of_words"), None
    )
    if bag_uri is None:
        return MixResult(unmixed, None)
    inputs = context.inputs
    metric = context.recipe.evaluation.metric

    def compute(uri: str) -> MixResult:
        context.progress.activity("mixing the fine-tuned encoder with the bag of words")
        record = inputs.remote(mix_with_bag)(
            unmixed.uri,
            bag_uri=bag_uri,
            validation=context.splits.validation,
            metric=metric,
            to=f"{uri}/model",
        )
        if record.weight == 1:
            return MixResult(unmixed, record)
        mixed = spec_of(unmixed.kind).mixed
        assert mixed is not None  # the classifier is fine-tuned
        return MixResult(Contender(mixed, f"{uri}/model", record.validation), record)

    stage_inputs = inputs.stage_inputs(mix_with_bag, model=unmixed.uri, bag=bag_uri, metric=metric)
    result = inputs.cached("mix", output=MixResult, inputs=stage_inputs, compute=compute)
    if result.record is not None:
        context.progress.note(mix_sentence(result.record))
    return result
