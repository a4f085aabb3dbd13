"""A pickle that shows whether it was read."""

import os
from pathlib import Path
from typing import Any


class Payload:
    """An object whose unpickling creates the folder `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)
