"""Format the data and the verdict of a run for the terminal."""

from tailorbird.data.quality import RARE_ROWS, listed
from tailorbird.data.sharding.loading import LoadedDataset
from tailorbird.evaluation.report.costs import cost_sentence
from tailorbird.evaluation.report.evidence import Evidence, MixRecord, ModelScore
from tailorbird.evaluation.statistics.documents import few_documents
from tailorbird.evaluation.statistics.power import rows_text
from tailorbird.evaluation.verdict.decide import CANDIDATE
from tailorbird.evaluation.verdict.formatting import model_name, named, size
from tailorbird.evaluation.verdict.parts import Power
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.registry.test_set_ledger import RowUse

MAX_OFFSETS = 5  # in a sentence


def data_lines(data: LoadedDataset, *, num_tuning: int, label_noun: str) -> list[str]:
    """Return lines about the rows of a run: sizes, copies, rare classes, and what limits the verdict.

    `num_tuning` is the number of training rows for fine-tuning.
    """
    report = data.report
    sizes = {name: len(rows) for name, rows in data.splits.items()} | {"train": data.num_train}
    counts = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    lines = [f"{counts} rows, {report.num_classes} {label_noun}"]
    if num_tuning < data.num_train:
        lines.append(f"fine-tuning uses {num_tuning:,} training rows (data.max_train_rows), the baselines use all")
    if report.near_copies:
        lines.append(
            f"near copies of rows in later splits, which were dropped from train and validation: {report.near_copies:,}"
        )
    if report.test_answers_in_train is not None:
        lines.append(f"{report.test_answers_in_train:,} of {report.num_test:,} test answers are also answers in train")
    if data.shards is not None:
        sample = len(data.splits.train)
        lines.append(f"training rows are streamed; baselines and some checks use a random sample of {sample:,} rows")
    if report.rare_classes:
        rare = listed(report.rare_classes)
        lines.append(f"classes with fewer than {RARE_ROWS} training rows, which a model hardly learns: {rare}")
    if report.empty_texts:
        lines.append(f"rows with an empty text, which all get the same answer: {report.empty_texts:,}")
    if report.largest_test_document > report.num_test / 2:
        lines.append(
            f"{report.largest_test_document:,} of {report.num_test:,} test rows are one document: they share values of "
            "split_by or are copies of each other, so the test has little evidence"
        )
    if report.test_documents < report.num_test:
        few = few_documents(report.test_documents, num_rows=report.num_test)
        lines += [f"{few}, or the verdict will be INSUFFICIENT_EVIDENCE"] if few else []
    return lines


def earlier_tests_line(use: RowUse, *, alpha: float) -> str:
    """Return a line about test rows that earlier tests have used, with the lower alpha of a further test."""
    return (
        f"{use.num_seen:,} of {use.num_rows:,} distinct test rows were used in earlier tests, so a new test has an "
        f"alpha of {alpha * use.alpha_share:.2g} ({alpha:g} on fresh rows)"
    )


def verdict_lines(evidence: Evidence) -> list[str]:
    """Return the verdict as a chain of sentences, then the power of the test, the costs and a table of scores."""
    verdict = evidence.verdict
    rows = [("model", "validation", "95% interval", "test"), *map(score_cells, evidence.scores)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        table.append("  ".join(cells).rstrip())
    details = [
        *evidence.data.differences,
        power_sentence(verdict.power, verdict) if verdict.power else None,
        seed_sentence(evidence),
        mix_sentence(evidence.mix) if evidence.mix else None,
        offsets_sentence(evidence),
        cost_sentence(evidence),
        streaming_sentence(evidence),
    ]
    return [
        f"{verdict.outcome}: {verdict.sentence()}",
        *(f"  {number}. {sentence}" for number, sentence in enumerate(verdict.sentences[1:], start=2)),
        "",
        *(f"  {detail}" for detail in details if detail),
        "",
        *table,
    ]


def verdict_panel(evidence: Evidence, *, promoted: bool = False) -> list[str]:
    """Return the verdict in words and in numbers, and the version that is served next.

    `promoted` is true if the winner was promoted after the run.
    """
    verdict, winner = evidence.verdict, evidence.winner
    version = f"{winner.uri.rpartition('/')[2]} ({model_name(winner.kind)})"
    served = f"{version}, {'now the champion' if promoted else 'once promoted'}"
    if winner.uri == evidence.champion:
        served = f"the champion {version}, as before"
    return [verdict.sentence(), verdict.numbers(), f"served next: {served}"]


def score_cells(score: ModelScore) -> tuple[str, str, str, str]:
    """Return the table cells of a model: name, validation score, interval, test score."""
    interval = "" if score.interval is None else "{:.3f} to {:.3f}".format(*score.interval)
    name = f"{score.kind} ({score.role})" if score.role else score.kind
    return name, f"{score.validation:.3f}", interval, "" if score.test is None else f"{score.test:.3f}"


def power_sentence(power: Power, verdict: Verdict) -> str:
    """Return the probability that such a test chooses a fine-tuned model, what prevents it, and the rows needed."""
    over = named(power.over)
    at_minimum = f"{power.at_minimum_gain:.0%} at a true gain of {size(verdict.minimum_gain)} (minimum_gain)"
    at_expected = f"{power.at_expected_gain:.0%} at {size(verdict.expected_gain)} (expected_gain)"
    limit = f"; otherwise most often blocked by {named(power.limited_by)}" if power.limited_by else ""
    return (
        f"power: a fine-tuned model is chosen in {at_minimum} and in {at_expected} over {over}{limit}; "
        f"{rows_text(power.rows_needed)} give 80%; {verdict.n:,} rows show a gain of "
        f"{100 * power.smallest_detectable:.2f} points over {over} in 80% of tests"
    )


def seed_sentence(evidence: Evidence) -> str:
    """Return the range of validation scores over seeds (from 3 seeds), and the score of the averaged weights.

    Empty if no model was trained.
    """
    if not evidence.seeds:
        return ""
    scores, averaged = [seed.validation for seed in evidence.seeds], evidence.averaged
    spread = f"validation scores {min(scores):.3f} to {max(scores):.3f}"
    sentence = f"seeds: {len(scores)}, {spread if len(scores) >= 3 else 'spread not assessed (needs 3 seeds)'}"
    if averaged is None:
        return sentence
    chosen = " (selected as the candidate)" if averaged.chosen else ""
    return f"{sentence}, averaged weights {averaged.validation:.3f}{chosen}"


def mix_sentence(mix: MixRecord) -> str:
    """Return the weight of the mix with the bag of words, or that no mix is better, with validation scores."""
    if mix.weight == 1:
        return (
            f"mix: none; no mix of the fine-tuned encoder and the bag of words ({mix.num_weights} weights) scores "
            f"above the encoder alone on validation ({mix.unmixed:.3f})"
        )
    return (
        f"mix: {mix.weight:g} x fine-tuned encoder + {1 - mix.weight:g} x bag of words (best of {mix.num_weights} "
        f"weights on validation): {mix.validation:.3f}; encoder alone {mix.unmixed:.3f}"
    )


def offsets_sentence(evidence: Evidence, *, role: str = CANDIDATE) -> str:
    """Return the largest offsets of a classifier, or an empty string if the highest logit decides."""
    record = evidence.versions.get(role)
    if record is None or not record.offsets:
        return ""
    by_size = sorted(record.offsets.items(), key=lambda item: abs(item[1]), reverse=True)
    shown = ", ".join(f"{label} {offset:+.2f}" for label, offset in by_size[:MAX_OFFSETS])
    num_more = max(0, len(by_size) - MAX_OFFSETS)
    more = f", and {num_more} smaller ones" if num_more else ""
    return (
        f"offsets of the {role}, which are fitted on validation and added to the logits before the highest one "
        f"decides: {shown}{more}"
    )


def streaming_sentence(evidence: Evidence) -> str | None:
    """Return a sentence about the training rows of each model if the rows were streamed, else None."""
    report = evidence.data.report
    if report.num_in_memory is None:
        return None
    fitted = f"the baselines on a random sample of {report.num_in_memory:,} rows"
    if evidence.training is not None:
        fitted = f"the candidate was trained on all {report.num_train:,} rows, {fitted}"
    return f"training rows were streamed: {fitted}; conflicting labels were counted in this sample"
