"""Traffic of windows of days. Each day of the log is read once for all windows that include it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from functools import cached_property
from itertools import chain

import numpy as np

from tailorbird.monitoring.log_reader import MapParts, by_day, read_labels, read_traffic
from tailorbird.monitoring.traffic import Labels, Traffic, WatchedVersions, merge_traffic


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

    @cached_property
    def labels(self) -> Labels:
        """Labels of the days from `since` on."""
        days = [day for day in self.feedback if day >= self.since.isoformat()]
        files = list(chain.from_iterable(self.feedback[day] for day in days))
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
        end = microseconds(last + timedelta(days=label_days + 1))
        in_time = outcomes.audited | (outcomes.labelled_at < end)
        return replace(traffic, outcomes=outcomes.where(in_time))

    def day(self, day: date) -> Traffic:
        """Return the traffic of one day of the last window, with all labels."""
        return self._days[day]

    def _read_day(self, day: date) -> Traffic:
        files = self.answers.get(day.isoformat(), [])
        return read_traffic(
            files, self.versions, labels=self.labels, secret=self._secret, map_parts=self.map_parts
        )


def files_between(by_day: dict[str, list[str]], first: date, last: date) -> list[str]:
    """Return the files of the days from first to last, in order."""
    days = (by_day.get(day.isoformat(), []) for day in span(first, last))
    return list(chain.from_iterable(days))


def span(first: date, last: date) -> Iterator[date]:
    """Yield the days from first to last, both included."""
    return (first + timedelta(days=number) for number in range((last - first).days + 1))


def microseconds(day: date) -> int:
    """Return the start of a day in microseconds since 1970, UTC."""
    return int(np.datetime64(day.isoformat(), "us").astype(np.int64))
