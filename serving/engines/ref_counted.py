"""Release a resource after its last use."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class RefCounted:
    """Counts the uses of a resource. After `unload`, the resource is released once, as soon as no
    use is left.

    All calls are made by one thread, that of the event loop.
    """

    def __init__(self, release: Callable[[], object]) -> None:
        self._release = release
        self._num_uses = 0
        self._is_unloaded = False
        self._is_released = False

    @contextmanager
    def use(self) -> Iterator[None]:
        """Keep the resource during the block."""
        self._num_uses += 1
        try:
            yield
        finally:
            self._num_uses -= 1
            self._release_if_unused()

    def unload(self) -> None:
        """Release the resource after its last use."""
        self._is_unloaded = True
        self._release_if_unused()

    def _release_if_unused(self) -> None:
        if self._is_unloaded and self._num_uses == 0 and not self._is_released:
            self._is_released = True
            self._release()
