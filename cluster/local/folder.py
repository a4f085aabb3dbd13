"""The folder of the embedded stack. Imports only the standard library, for `tailorbird doctor`."""

import os
from pathlib import Path

NAME = ".tailorbird"


def default_folder() -> Path:
    """Return the default folder of the stack: TAILORBIRD_HOME, or `.tailorbird` here or in the
    nearest parent folder.

    If no parent folder has one that belongs to this user, it is `.tailorbird` in the working
    directory. The keys of another user's stack would give this user's data to that stack.
    """
    if given := os.environ.get("TAILORBIRD_HOME"):
        return Path(given).absolute()
    here = Path.cwd()
    candidates = (folder / NAME for folder in (here, *here.parents))
    candidates = (
        folder for folder in candidates if folder.is_dir() and folder.stat().st_uid == os.geteuid()
    )
    return next(candidates, here / NAME)
