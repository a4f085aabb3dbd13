"""Search for secrets in Ray's job and application lists and in the logs of a node."""

from pathlib import Path

from cluster.dashboard import request_dashboard
from cluster.local.stack import LOG_FILE, StackState

LISTS = ("/api/jobs/", "/api/serve/applications/")
LOGS = (".log", ".out", ".err")


def secrets_of(stack: StackState) -> dict[str, bytes]:
    """Return the credentials of the stack by name."""
    named = {
        "S3 access key": stack.access_key,
        "S3 secret": stack.secret_key,
        "Ray's token": stack.token,
    }
    return {name: secret.encode() for name, secret in named.items()}


def leaks(stack: StackState, secrets: dict[str, str]) -> list[str]:
    """Return where these secrets or the stack's credentials are in plain text: in Ray's lists or
    the stack's logs."""
    searched = secrets_of(stack) | {name: secret.encode() for name, secret in secrets.items()}
    logs = [
        path for path in Path(stack.temp_dir).rglob("*") if path.is_file() and path.suffix in LOGS
    ]
    assert len(logs) > 10
    texts = {path: request_dashboard("GET", path).content for path in LISTS}
    texts |= {
        str(path): path.read_bytes() for path in (*logs, Path(stack.token_path).parent / LOG_FILE)
    }
    return [
        f"{name} in {location}"
        for location, text in texts.items()
        for name, secret in searched.items()
        if secret in text
    ]
