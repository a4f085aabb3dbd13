"""API keys: authentication by their stored hashes, and rate limits."""

import asyncio
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from serving.http.schemas import LOCAL, RequestError
from tailorbird.storage import exists, read_bytes

ENVIRONMENT = "env://"
PREFIX = "tb-"
RELOAD_S = 5.0
KEY_BYTES = 32
_LINE = re.compile(r"(?P<name>[\w.@-]{1,64})\s+(?P<sha256>[0-9a-f]{64})(?:\s+(?P<per_minute>[1-9]\d{0,8}))?")

_log = logging.getLogger("ray.serve")


class KeysError(ValueError):
    """Keys that cannot be read; the message names the line and never repeats it."""


class ApiKey(NamedTuple):
    """A key as it is stored."""

    name: str
    sha256: str
    """Hash of the key: 256 random bits need no salt and no slow hash."""
    per_minute: int | None
    """Requests a minute that a replica answers; None for no limit."""

    def to_line(self) -> str:
        """Return the line of the keys' file."""
        return " ".join(str(part) for part in self if part is not None)


def new_key(name: str, *, per_minute: int | None = None) -> tuple[str, ApiKey]:
    """Return a random key, which is handed out once, and what is stored of it."""
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    stored = ApiKey(name, _sha256(key), per_minute)
    if not _LINE.fullmatch(stored.to_line()):
        raise KeysError(
            f"name {name!r} and {per_minute} requests a minute cannot be stored: a name has 1 to 64 letters, digits, "
            "dots, dashes, underscores or @, and a limit is 1 or more"
        )
    return key, stored


def read_keys(source: str) -> tuple[ApiKey, ...]:
    """Return the keys in a file, or in an environment variable, `env://NAME`: one a line, `#` begins a comment.

    Raises KeysError for an invalid line, a duplicate key, or no key at all.
    """
    keys, errors = _parsed(read_secret(source), source=source)
    if errors:
        raise KeysError(errors[0])
    return keys


def _parsed(content: bytes, *, source: str) -> tuple[tuple[ApiKey, ...], list[str]]:
    """Return the keys and the errors of the other lines."""
    keys: dict[str, ApiKey] = {}
    errors = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            errors.append(f"{source}, line {number}: must be `name sha256 [requests a minute]`, see `tailorbird key`")
        elif match["sha256"] in keys:
            errors.append(f"{source}, line {number}: the key stands there twice")
        else:
            limit = match["per_minute"]
            keys[match["sha256"]] = ApiKey(match["name"], match["sha256"], int(limit) if limit else None)
    if not keys and not errors:
        errors.append(f"{source} holds no key; `tailorbird key NAME` makes one and says what to store")
    return tuple(keys.values()), errors


def read_secret(source: str) -> bytes:
    """Return the content of a file or an environment variable, `env://NAME`; raise KeysError if it is not set."""
    if not source.startswith(ENVIRONMENT):
        return read_bytes(source)
    variable = source.removeprefix(ENVIRONMENT)
    if variable not in os.environ:
        raise KeysError(f"the environment of this node has no {variable}, which the recipe's serving section names")
    return os.environ[variable].encode()


def read_subject_key(source: str) -> bytes:
    """Return the key that subjects are hashed with; raise KeysError if it is short enough to be guessed."""
    key = read_secret(source).strip()
    if len(key) < KEY_BYTES:
        least = f"at least {KEY_BYTES} random ones (openssl rand -hex 32)"
        raise KeysError(f"{source} holds {len(key)} bytes; give {least}")
    return key


class ApiKeyAuthenticator:
    """Authenticates requests by the keys in `source`, which is read again every few seconds to revoke removed keys.

    A name may have several keys, so that keys can be rotated. Rate limits count per key and replica, by a token bucket
    that holds a minute's requests.
    """

    def __init__(self, source: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._now = now
        self._keys = read_keys(source)
        self._buckets: dict[str, tuple[float, float]] = {}
        self._last_error = ""

    def authenticate(self, headers: Mapping[str, str]) -> str:
        """Return the name of the key in the Authorization header; raise RequestError 401, or 429 over its limit."""
        authorization = headers.get("authorization", "")
        scheme, _, key = authorization.partition(" ")
        sha256 = _sha256(key.strip())
        # All are compared, each in constant time, so that the time reveals nothing of the stored keys.
        matches = [stored for stored in self._keys if hmac.compare_digest(stored.sha256, sha256)]
        if scheme.lower() != "bearer" or not matches:
            type = "invalid_api_key" if authorization else "missing_api_key"
            message = "give a key that is valid here in the header `Authorization: Bearer KEY`"
            headers = {"www-authenticate": "Bearer"}
            raise RequestError(401, type, message, code="invalid_api_key", headers=headers)
        self._require_within_limit(matches[0])
        return matches[0].name

    def reload(self) -> None:
        """Read the keys again; removed keys are no longer valid, also if the file was deleted.

        While the store is unavailable, the last keys stay valid. The log names an error once.
        """
        try:
            deleted = not self._source.startswith(ENVIRONMENT) and not exists(self._source)
            keys, errors = _parsed(b"" if deleted else read_secret(self._source), source=self._source)
        except Exception as error:  # an unavailable store must not lock clients out
            self._report(f"those read last stay: {error}")
            return
        self._keys = keys
        self._report("; ".join(errors))

    def _report(self, error: str) -> None:
        if error and error != self._last_error:
            _log.error("the API keys could not be read again: %s", error)
        self._last_error = error

    async def keep_current(self) -> None:
        """Reload the keys periodically, off the event loop, until cancelled."""
        while True:
            await asyncio.sleep(RELOAD_S)
            await asyncio.to_thread(self.reload)

    def _require_within_limit(self, key: ApiKey) -> None:
        if key.per_minute is None:
            return
        now, rate = self._now(), key.per_minute / 60
        tokens, updated_at = self._buckets.get(key.sha256, (float(key.per_minute), now))
        tokens = min(float(key.per_minute), tokens + (now - updated_at) * rate)
        if tokens < 1:
            wait_s = max(1, round((1 - tokens) / rate + 0.5))
            message = f"{key.name} may ask {key.per_minute} times a minute; ask again in {wait_s} s"
            headers = {"retry-after": str(wait_s)}
            raise RequestError(429, "rate_limited", message, code="rate_limit_exceeded", headers=headers)
        self._buckets[key.sha256] = (tokens - 1, now)


def require_local_caller(headers: Mapping[str, str]) -> None:
    """Without keys: raise RequestError 403 for a cross-origin request of a browser on this machine."""
    host, origin = headers.get("host", ""), headers.get("origin", "")
    name = urlsplit(f"//{host}").hostname
    if name not in LOCAL or (origin and urlsplit(origin).netloc != host):
        message = (
            "without API keys only this machine may ask, by the name 127.0.0.1 or localhost, and no other page from a "
            "browser; the recipe's serving.api_keys lets others in"
        )
        raise RequestError(403, "foreign_page", message)


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
