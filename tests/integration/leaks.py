"""What anyone who may list jobs or read a node's logs gets to see."""

from pathlib import Path

from cluster.dashboard import request_dashboard
from cluster.local.stack import LOG_FILE, StackState

LISTS = ("/api/jobs/", "/api/serve/applications/")
LOGS = (".log", ".out", ".err")


def secrets_of(stack: StackState) -> dict[str, bytes]:
    """What opens the stack, by what it is."""
    named = {"S3 access key": stack.access_key, "S3 secret": stack.secret_key, "Ray's token": stack.token}
    return {name: secret.encode() for name, secret in named.items()}


def leaks(stack: StackState, secrets: dict[str, str]) -> list[str]:
    """Where one of these, or of what opens the stack, stands in clear: in Ray's lists, or any log of the stack."""
    wanted = secrets_of(stack) | {name: secret.encode() for name, secret in secrets.items()}
    logs = [path for path in Path(stack.temp_dir).rglob("*") if path.is_file() and path.suffix in LOGS]
    assert len(logs) > 10
    texts = {path: request_dashboard("GET", path).content for path in LISTS}
    texts |= {str(path): path.read_bytes() for path in (*logs, Path(stack.token_path).parent / LOG_FILE)}
    return [
        f"{name} in {location}" for location, text in texts.items() for name, secret in wanted.items() if secret in text
    ]
