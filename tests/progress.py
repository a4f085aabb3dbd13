"""A progress reporter that records events."""

from typing import TypeVar

from cluster.progress import ProgressEvent, ProgressReporter

Event = TypeVar("Event", bound=ProgressEvent)


class ProgressRecorder(ProgressReporter):
    """Reporter that keeps every event in `events`."""

    def __init__(self) -> None:
        super().__init__(self.record)
        self.events: list[ProgressEvent] = []

    def record(self, event: ProgressEvent) -> None:
        self.events.append(event)

    def of_kind(self, kind: type[Event]) -> list[Event]:
        """Return the events of this class in order."""
        return [event for event in self.events if isinstance(event, kind)]
