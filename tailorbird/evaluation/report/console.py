"""Format the data and the verdict of a run for the terminal."""

from cluster.display.state import table_lines
from tailorbird.data.quality import RARE_ROWS, listed
from tailorbird.data.sharding.loading import LoadedDataset
from tailorbird.evaluation.report.evidence import Evidence, ModelScore
from tailorbird.evaluation.report.sentences import details
from tailorbird.evaluation.statistics.documents import few_documents
from tailorbird.evaluation.verdict.explain import known_rows
from tailorbird.evaluation.verdict.formatting import model_name
from tailorbird.registry.test_set_ledger import RowUse


def data_lines(data: LoadedDataset, *, num_tuning: int, label_noun: str) -> list[str]:
    """Return lines about the rows of a run: sizes, copies, rare classes, and what limits the
    verdict.

    `num_tuning` is the number of training rows for fine-tuning.
    """
    report = data.report
    sizes = {name: len(rows) for name, rows in data.splits.items()} | {"train": data.num_train}
    counts = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    lines = [f"{counts} rows, {report.num_classes} {label_noun}"]
    if num_tuning < data.num_train:
        lines.append(
            f"fine-tuning uses {num_tuning:,} training rows (data.max_train_rows), the baselines "
            "use all"
        )

    if report.near_copies:
        lines.append(
            "near copies of rows in later splits, which were dropped from train and validation: "
            f"{report.near_copies:,}"
        )
    if report.test_answers_in_train is not None:
        lines.append(
            f"{report.test_answers_in_train:,} of {report.num_test:,} test answers are also "
            "answers in train"
        )
    if data.shards is not None:
        lines.append(
            "training rows are streamed; baselines and some checks use a random sample of "
            f"{len(data.splits.train):,} rows"
        )

    if report.rare_classes:
        lines.append(
            f"classes with fewer than {RARE_ROWS} training rows, which a model hardly learns: "
            f"{listed(report.rare_classes)}"
        )
    if report.empty_texts:
        lines.append(
            f"rows with an empty text, which all get the same answer: {report.empty_texts:,}"
        )

    if report.largest_test_document > report.num_test / 2:
        lines.append(
            f"{report.largest_test_document:,} of {report.num_test:,} test rows are one document: "
            "they share values of split_by or are copies of each other, so the test has little "
            "evidence"
        )
    if report.test_documents < report.num_test:
        few = few_documents(report.test_documents, num_rows=report.num_test)
        if few:
            lines.append(f"{few}, or the verdict will be INSUFFICIENT_EVIDENCE")
    return lines


def earlier_tests_line(use: RowUse, *, alpha: float) -> str:
    """Return a line about test rows that earlier tests have used, with the lower alpha of a further
    test."""
    return (
        f"{known_rows(use)}, so a new test has an alpha of {alpha * use.alpha_share:.2g} "
        f"({alpha:g} on fresh rows)"
    )


def verdict_lines(evidence: Evidence) -> list[str]:
    """Return the verdict as a chain of sentences, then the power of the test, the costs and a table
    of scores."""
    verdict = evidence.verdict
    numbered = enumerate(verdict.sentences[1:], start=2)
    heads = ("model", "validation", "95% interval", "test")
    return [
        f"{verdict.outcome}: {verdict.sentence()}",
        *(f"  {number}. {sentence}" for number, sentence in numbered),
        "",
        *(f"  {detail}" for detail in (*evidence.data.differences, *details(evidence).values())),
        "",
        *table_lines([heads, *map(score_cells, evidence.scores)]),
    ]


def verdict_panel(evidence: Evidence) -> list[str]:
    """Return the verdict in words and in numbers, and the version that is served next."""
    verdict = evidence.verdict
    winner = evidence.winner
    version = f"{winner.uri.rpartition('/')[2]} ({model_name(winner.kind)})"
    served = f"{version}, once promoted"
    if winner.uri == evidence.champion:
        served = f"the champion {version}, as before"
    return [verdict.sentence(), verdict.numbers(), f"served next: {served}"]


def score_cells(score: ModelScore) -> tuple[str, str, str, str]:
    """Return the table cells of a model: name, validation score, interval, test score."""
    interval = ""
    if score.interval is not None:
        interval = "{:.3f} to {:.3f}".format(*score.interval)
    name = score.kind
    if score.role is not None:
        name = f"{score.kind} ({score.role})"
    return name, f"{score.validation:.3f}", interval, optional(score.test, "{:.3f}")


def optional(value: float | None, form: str) -> str:
    """Return a value in a format; empty if it is None."""
    if value is None:
        return ""
    return form.format(value)
