"""The security log of a replica: keys, configurations and refused requests, as JSON objects."""

import json
import logging

_log = logging.getLogger("ray.serve")


def log_event(event: str, *, task: str, **fields: object) -> None:
    """Log a JSON object on one line. Control characters of clients' texts are escaped."""
    _log.warning("%s", json.dumps({"event": event, "task": task, **fields}))
