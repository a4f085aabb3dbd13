"""The user and host of this process, which the registry records with a change."""

import getpass
import os
import socket


def current_user() -> str:
    """Return the name of this process's user, or `uid N` if the user has no name, as in some
    containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # Python 3.13 and later raise OSError
        return f"uid {os.getuid()}"


def caller() -> str:
    """Return the user and the host of this process, as `user@host`."""
    return f"{current_user()}@{socket.gethostname()}"
