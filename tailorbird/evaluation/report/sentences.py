"""The facts of a run that its verdict does not state, each as one sentence for terminal, report and
model card."""

from tailorbird.evaluation.mix_weight import WEIGHTS, MixRecord
from tailorbird.evaluation.report.costs import cost_sentence
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.statistics.power import rows_text
from tailorbird.evaluation.verdict.decide import CANDIDATE
from tailorbird.evaluation.verdict.formatting import named, size
from tailorbird.evaluation.verdict.types import Verdict

MAX_OFFSETS = 5  # in a sentence


def details(evidence: Evidence, *, role: str = CANDIDATE) -> dict[str, str]:
    """Return the sentences by subject, with the offsets of the model in a role; without those that
    do not apply."""
    sentences = {
        "power": _power(evidence.verdict),
        "seeds": _seeds(evidence),
        "mix": mix_sentence(evidence.mix) if evidence.mix else "",
        "offsets": _offsets(evidence, role),
        "cost": cost_sentence(evidence),
        "streaming": _streaming(evidence),
    }
    return {subject: sentence for subject, sentence in sentences.items() if sentence}


def _power(verdict: Verdict) -> str:
    """Return the probability that such a test chooses a fine-tuned model, what prevents it, and the
    rows needed."""
    power = verdict.power
    if power is None:
        return ""
    at_minimum = (
        f"{power.at_minimum_gain:.0%} at a true gain of {size(verdict.minimum_gain)} (minimum_gain)"
    )
    at_expected = f"{power.at_expected_gain:.0%} at {size(verdict.expected_gain)} (expected_gain)"
    limit = ""
    if power.limited_by:
        limit = f"; otherwise most often blocked by {named(power.limited_by)}"
    return (
        f"power: a fine-tuned model is chosen in {at_minimum} and in {at_expected} over "
        f"{named(power.over)}{limit}; {rows_text(power.rows_needed)} give 80%"
    )


def _seeds(evidence: Evidence) -> str:
    """Return the range of validation scores over seeds (from 3 seeds), and the score of the
    averaged weights."""
    scores = [seed.validation for seed in evidence.seeds]
    if not scores:
        return ""
    spread = f"validation scores {min(scores):.3f} to {max(scores):.3f}"
    if len(scores) < 3:
        spread = "spread not assessed (needs 3 seeds)"
    weights = ""
    averaged = evidence.averaged
    if averaged is not None:
        weights = f", averaged weights {averaged.validation:.3f}"
        if averaged.chosen:
            weights += " (selected as the candidate)"
    return f"seeds: {len(scores)}, {spread}{weights}"


def mix_sentence(mix: MixRecord) -> str:
    """Return the weight of the mix with the bag of words, or that no mix is better, with validation
    scores."""
    if mix.weight == 1:
        return (
            f"mix: none; no mix of the fine-tuned encoder and the bag of words ({len(WEIGHTS)} "
            f"weights) scores above the encoder alone on validation ({mix.unmixed:.3f})"
        )
    return (
        f"mix: {mix.weight:g} x fine-tuned encoder + {1 - mix.weight:g} x bag of words (best of "
        f"{len(WEIGHTS)} weights on validation): {mix.validation:.3f}; encoder alone "
        f"{mix.unmixed:.3f}"
    )


def _offsets(evidence: Evidence, role: str) -> str:
    """Return the largest offsets of a classifier; empty if the highest logit decides."""
    if role not in evidence.versions or not evidence.versions[role].offsets:
        return ""
    offsets = evidence.versions[role].offsets
    by_size = sorted(offsets.items(), key=lambda item: abs(item[1]), reverse=True)
    shown = [f"{label} {offset:+.2f}" for label, offset in by_size[:MAX_OFFSETS]]
    if len(by_size) > MAX_OFFSETS:
        shown.append(f"and {len(by_size) - MAX_OFFSETS} smaller ones")
    return (
        f"offsets of the {role}, which are fitted on validation and added to the logits before the "
        f"highest one decides: {', '.join(shown)}"
    )


def _streaming(evidence: Evidence) -> str:
    """Return the training rows of each model if the rows were streamed."""
    report = evidence.data.report
    if report.num_in_memory is None:
        return ""
    fitted = f"the baselines on a random sample of {report.num_in_memory:,} rows"
    if evidence.training is not None:
        fitted = f"the candidate was trained on all {report.num_train:,} rows, {fitted}"
    return f"training rows were streamed: {fitted}; conflicting labels were counted in this sample"
