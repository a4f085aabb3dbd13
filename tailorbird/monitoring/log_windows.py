"""Between log and reports: a day of the log is read once in a run, for all the windows that it is part of."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.monitoring.log_reader import DAY_US, Labels, Traffic, Watched, by_day, joined, read_labels, read_traffic


class Days:
    """The days of a log; held are those of the window that was asked for last, and labels.

    Windows are asked for in order. `each` is as in `read_traffic`; feedback is read of the days from `since` on.
    """

    def __init__(self, log: str, watched: Watched, *, audits: Sequence[str], each: Callable[..., Any] = map) -> None:
        self.watched, self.audits, self.each = watched, audits, each
        self.answers, self.feedback = by_day(log, "answers"), by_day(log, "feedback")
        self.since = date.max
        self._read: dict[date, Traffic] = {}
        self._known: dict[date, NDArray[np.int32]] = {}

    @cached_property
    def labels(self) -> Labels:
        """What is known to be right, of the days from `since` on."""
        days = [day for day in self.feedback if day >= self.since.isoformat()]
        return read_labels([uri for day in days for uri in self.feedback[day]], audits=self.audits)

    def window(self, first: date, last: date, *, label_days: int) -> Traffic:
        """These days as one; of feedback that which came at most `label_days` after the last of them."""
        for day in [day for day in self._read if day < first]:
            del self._read[day]
        for day in span(first, last):
            if day not in self._read:
                self._read[day] = self._day(day)
        found = joined(self._read[day] for day in span(first, last))
        outcomes = found.outcomes
        in_time = outcomes.audited | (outcomes.told < microseconds(last + timedelta(days=label_days + 1)))
        return found if in_time.all() else replace(found, outcomes=outcomes.where(in_time))

    def unanswered(self, first: date, last: date, *, label_days: int) -> int:
        """Texts of which feedback told on these days, and that nobody asked on them or `label_days` before."""
        labels = self.labels
        of_days = (labels.told >= microseconds(first)) & (labels.told < microseconds(last) + DAY_US)
        told = np.flatnonzero(of_days & ~labels.audited)
        for day in span(first - timedelta(days=label_days), last):
            if not len(told):
                break
            if day not in self._known:
                self._day(day)
            told = np.setdiff1d(told, self._known[day], assume_unique=True)
        return len(told)

    def _day(self, day: date) -> Traffic:
        files = self.answers.get(day.isoformat(), [])
        found = read_traffic(files, self.watched, labels=self.labels, each=self.each)
        self._known[day] = found.known
        return found


def files_between(by_day: dict[str, list[str]], first: date, last: date) -> list[str]:
    """Files of the days from first to last, in order."""
    return [uri for day in span(first, last) for uri in by_day.get(day.isoformat(), [])]


def span(first: date, last: date) -> Iterator[date]:
    """The days from first to last, both included."""
    return (first + timedelta(days=number) for number in range((last - first).days + 1))


def microseconds(day: date) -> int:
    """When a day begins, since 1970, UTC."""
    return int(np.datetime64(day.isoformat(), "us").astype(np.int64))
