"""Traffic of windows of days. Each day of the log is read once for all windows that include it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tailorbird.monitoring.log_reader import MapParts, by_day, read_labels, read_traffic
from tailorbird.monitoring.traffic import DAY_US, Labels, Traffic, WatchedVersions, merge_traffic


class LogDays:
    """The days of a request log, with the labels and the days of the last window in memory.

    Windows must be requested in order. Feedback is read from the day `since` on.
    """

    def __init__(
        self,
        log: str,
        versions: WatchedVersions,
        *,
        audits: Sequence[str],
        secret: bytes,
        map_parts: MapParts = map,
    ) -> None:
        self.versions = versions
        self.audits = audits
        self.map_parts = map_parts
        self._secret = secret
        self.answers = by_day(log, "answers")
        self.feedback = by_day(log, "feedback")
        self.since = date.max
        self._days: dict[date, Traffic] = {}
        self._answered: dict[date, NDArray[np.int32]] = {}

    @cached_property
    def labels(self) -> Labels:
        """Labels of the days from `since` on."""
        days = [day for day in self.feedback if day >= self.since.isoformat()]
        files = [uri for day in days for uri in self.feedback[day]]
        return read_labels(files, secret=self._secret, audits=self.audits, task=self.versions.task)

    def window(self, first: date, last: date, *, label_days: int) -> Traffic:
        """Return the traffic of these days, with feedback received up to `label_days` after the
        last day."""
        for day in [day for day in self._days if day < first]:
            del self._days[day]
        for day in span(first, last):
            if day not in self._days:
                self._days[day] = self._read_day(day)
        traffic = merge_traffic(self._days[day] for day in span(first, last))
        outcomes = traffic.outcomes
        in_time = outcomes.audited | (
            outcomes.labelled_at < microseconds(last + timedelta(days=label_days + 1))
        )
        if in_time.all():
            return traffic
        return replace(traffic, outcomes=outcomes.where(in_time))

    def day(self, day: date) -> Traffic:
        """Return the traffic of one day of the last window, with all labels."""
        return self._days[day]

    def num_unmatched(self, first: date, last: date, *, label_days: int) -> int:
        """Return the number of texts with feedback on these days and no answer on these days or
        `label_days` before."""
        labels = self.labels
        in_window = (labels.labelled_at >= microseconds(first)) & (
            labels.labelled_at < microseconds(last) + DAY_US
        )
        unmatched = np.flatnonzero(in_window & (labels.audits == 0))
        for day in span(first - timedelta(days=label_days), last):
            if not len(unmatched):
                break
            if day not in self._answered:
                self._read_day(day)
            unmatched = np.setdiff1d(unmatched, self._answered[day], assume_unique=True)
        return len(unmatched)

    def _read_day(self, day: date) -> Traffic:
        files = self.answers.get(day.isoformat(), [])
        traffic = read_traffic(
            files, self.versions, labels=self.labels, secret=self._secret, map_parts=self.map_parts
        )
        self._answered[day] = traffic.answered
        return traffic


def files_between(by_day: dict[str, list[str]], first: date, last: date) -> list[str]:
    """Return the files of the days from first to last, in order."""
    return [uri for day in span(first, last) for uri in by_day.get(day.isoformat(), [])]


def span(first: date, last: date) -> Iterator[date]:
    """Yield the days from first to last, both included."""
    return (first + timedelta(days=number) for number in range((last - first).days + 1))


def microseconds(day: date) -> int:
    """Return the start of a day in microseconds since 1970, UTC."""
    return int(np.datetime64(day.isoformat(), "us").astype(np.int64))
