"""A reporter that keeps what is reported to it."""

from typing import TypeVar

from cluster.progress import ProgressEvent, ProgressReporter

Event = TypeVar("Event", bound=ProgressEvent)


class ProgressRecorder(ProgressReporter):
    """Keeps every event."""

    def __init__(self) -> None:
        super().__init__(self.record)
        self.events: list[ProgressEvent] = []

    def record(self, event: ProgressEvent) -> None:
        self.events.append(event)

    def of_kind(self, kind: type[Event]) -> list[Event]:
        """Return the events of one class, first to last."""
        return [event for event in self.events if isinstance(event, kind)]
