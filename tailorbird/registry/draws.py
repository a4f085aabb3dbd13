"""Random draws that clients can neither predict nor influence: HMACs with a secret of the task.

The secret decides which answers are audited and which are compared with the drift reference. Only
the commands that read the request log know it.
"""

import hmac
from secrets import token_hex

from pydantic import Field, ValidationError

from tailorbird.storage import write_once
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.s3 import StorageError
from tailorbird.storage.stored_model import StoredModel

SECRET_BYTES = 32


class DrawSecret(StoredModel):
    """The secret of a task's draws."""

    key: str = Field(pattern=f"^[0-9a-f]{{{2 * SECRET_BYTES}}}$")  # random bytes, in hex


def draw_secret(task_uri: str) -> bytes:
    """Return the secret of the task's draws, and create it if there is none.

    Raises StorageError if it can be neither read nor created, for example by a role with read
    access only.
    """
    uri = TaskPaths(task_uri).draw_secret
    try:
        secret = write_once(uri, DrawSecret(key=token_hex(SECRET_BYTES)))
        return bytes.fromhex(secret.key)
    except (ValidationError, ValueError) as error:
        raise StorageError(
            f"{uri} is not a valid secret: {error}; restore the file from a copy, or delete it"
        ) from None


def draw_code(secret: bytes, *parts: str) -> int:
    """Return the code of a value, at least 0 and less than 2**64.

    The codes of different values are independent and uniform. The first part names the purpose of
    the draw. Only the last part may contain NUL.
    """
    message = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hmac.digest(secret, message, "sha256")[:8], "big")
