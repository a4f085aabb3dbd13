"""API keys: authentication against stored hashes, and rate limits."""

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
    """API keys that cannot be read. The message gives the line number and never the content of the line."""


class ApiKey(NamedTuple):
    """A stored API key."""

    name: str
    sha256: str
    """SHA-256 of the key. A key has 256 random bits, so it needs no salt and no slow hash."""
    per_minute: int | None
    """Maximum number of requests per minute and replica; None for no limit."""

    def to_line(self) -> str:
        """Return the key's line in the key file."""
        return " ".join(str(part) for part in self if part is not None)


def new_key(name: str, *, per_minute: int | None = None) -> tuple[str, ApiKey]:
    """Return a new random key for the client, and the `ApiKey` to store."""
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    stored = ApiKey(name, _sha256(key), per_minute)
    if not _LINE.fullmatch(stored.to_line()):
        raise KeysError(
            f"name {name!r} with limit {per_minute} is not valid: a name has 1 to 64 letters, digits, dots, dashes, "
            "underscores or @, and a limit is 1 request a minute or more"
        )
    return key, stored


def read_keys(source: str) -> tuple[ApiKey, ...]:
    """Return the keys in a file, or in an environment variable (`env://NAME`).

    Each line holds one key; `#` starts a comment. Raises KeysError for an invalid line, a duplicate key, or no key.
    """
    keys, errors = _parsed(read_secret(source), source=source)
    if errors:
        raise KeysError(errors[0])
    return keys


def _parsed(content: bytes, *, source: str) -> tuple[tuple[ApiKey, ...], list[str]]:
    """Return the keys of the valid lines, and an error for each invalid line."""
    keys: dict[str, ApiKey] = {}
    errors = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            errors.append(
                f"{source}, line {number}: must be `name sha256 [requests a minute]`; "
                "run `tailorbird key NAME` to make a key"
            )
        elif match["sha256"] in keys:
            errors.append(f"{source}, line {number}: duplicate key")
        else:
            limit = match["per_minute"]
            keys[match["sha256"]] = ApiKey(match["name"], match["sha256"], int(limit) if limit else None)
    if not keys and not errors:
        errors.append(f"{source} contains no key; run `tailorbird key NAME` to make a key")
    return tuple(keys.values()), errors


def read_secret(source: str) -> bytes:
    """Return the content of a file or of an environment variable (`env://NAME`).

    Raises KeysError if the variable is not set.
    """
    if not source.startswith(ENVIRONMENT):
        return read_bytes(source)
    variable = source.removeprefix(ENVIRONMENT)
    if variable not in os.environ:
        raise KeysError(
            f"environment variable {variable}, which the recipe's serving section names, is not set on this node"
        )
    return os.environ[variable].encode()


def read_subject_key(source: str) -> bytes:
    """Return the key for hashing subjects; raise KeysError if it is too short to resist guessing."""
    key = read_secret(source).strip()
    if len(key) < KEY_BYTES:
        raise KeysError(
            f"{source} has {len(key)} bytes; store at least {KEY_BYTES} random bytes (openssl rand -hex 32)"
        )
    return key


class ApiKeyAuthenticator:
    """Authenticator of requests by the keys in `source`.

    The keys are reloaded every few seconds, which revokes removed keys. A name may have several keys, which allows
    rotation. Each replica limits the rate per key with a token bucket that holds one minute's requests.
    """

    def __init__(self, source: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._now = now
        self._keys = read_keys(source)
        self._buckets: dict[str, tuple[float, float]] = {}
        self._last_error = ""

    def authenticate(self, headers: Mapping[str, str]) -> str:
        """Return the name of the key in the Authorization header.

        Raises RequestError 401 for a missing or invalid key, and 429 if the key is over its limit.
        """
        authorization = headers.get("authorization", "")
        scheme, _, key = authorization.partition(" ")
        sha256 = _sha256(key.strip())
        # Compare all keys in constant time: the response time must not reveal anything about the stored keys.
        matches = [stored for stored in self._keys if hmac.compare_digest(stored.sha256, sha256)]
        if scheme.lower() != "bearer" or not matches:
            type = "invalid_api_key" if authorization else "missing_api_key"
            message = "give a valid API key in the header `Authorization: Bearer KEY`"
            headers = {"www-authenticate": "Bearer"}
            raise RequestError(401, type, message, code="invalid_api_key", headers=headers)
        self._require_within_limit(matches[0])
        return matches[0].name

    def reload(self) -> None:
        """Reload the keys. A removed key is no longer valid; a deleted file removes all keys.

        While storage is unavailable, the last keys stay valid. An error is logged once.
        """
        try:
            deleted = not self._source.startswith(ENVIRONMENT) and not exists(self._source)
            keys, errors = _parsed(b"" if deleted else read_secret(self._source), source=self._source)
        except Exception as error:  # unavailable storage must not lock clients out
            self._report(f"the last keys stay valid: {error}")
            return
        self._keys = keys
        self._report("; ".join(errors))

    def _report(self, error: str) -> None:
        if error and error != self._last_error:
            _log.error("the API keys could not be reloaded: %s", error)
        self._last_error = error

    async def keep_current(self) -> None:
        """Reload the keys every few seconds, in a thread, until cancelled."""
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
            message = f"{key.name} is limited to {key.per_minute} requests a minute; retry in {wait_s} s"
            headers = {"retry-after": str(wait_s)}
            raise RequestError(429, "rate_limited", message, code="rate_limit_exceeded", headers=headers)
        self._buckets[key.sha256] = (tokens - 1, now)


def require_local_caller(headers: Mapping[str, str]) -> None:
    """Raise RequestError 403 unless the request is local and same-origin; for services without API keys."""
    host, origin = headers.get("host", ""), headers.get("origin", "")
    name = urlsplit(f"//{host}").hostname
    if name not in LOCAL or (origin and urlsplit(origin).netloc != host):
        message = (
            "without API keys, only requests to 127.0.0.1 or localhost from this machine are accepted, and none from "
            "pages of other sites; set serving.api_keys in the recipe to accept others"
        )
        raise RequestError(403, "foreign_page", message)


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
