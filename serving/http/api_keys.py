"""At the door: who may ask, told by the hash of the API key that a request carries, and how often a minute."""

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
    """Keys that cannot be read; the message names the line and never shows it."""


class ApiKey(NamedTuple):
    """Who holds a key, as it is stored."""

    name: str
    sha256: str
    """Of the key: 256 random bits need no salt, and no slow hash."""
    per_minute: int | None
    """Requests a minute that a replica answers; None for as many as come."""

    def to_line(self) -> str:
        """As it stands in the file."""
        return " ".join(str(part) for part in self if part is not None)


def new_key(name: str, *, per_minute: int | None = None) -> tuple[str, ApiKey]:
    """A random key, to be given away once, and what is stored of it."""
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    stored = ApiKey(name, _sha256(key), per_minute)
    if not _LINE.fullmatch(stored.to_line()):
        raise KeysError(
            f"name {name!r} and {per_minute} requests a minute cannot be stored: a name has 1 to 64 letters, digits, "
            "dots, dashes, underscores or @, and a limit is 1 or more"
        )
    return key, stored


def read_keys(source: str) -> tuple[ApiKey, ...]:
    """The keys of a file's URI, or of an environment variable, `env://NAME`: one a line, `#` begins a comment.

    Raises KeysError where a line is none, a key stands twice, or there is no key at all.
    """
    keys, faults = _parsed(read_secret(source), source=source)
    if faults:
        raise KeysError(faults[0])
    return keys


def _parsed(content: bytes, *, source: str) -> tuple[tuple[ApiKey, ...], list[str]]:
    """The keys, and what is wrong with the lines that hold none."""
    keys: dict[str, ApiKey] = {}
    faults = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        plain = line.split("#", 1)[0].strip()
        if not plain:
            continue
        found = _LINE.fullmatch(plain)
        if found is None:
            faults.append(f"{source}, line {number}: must be `name sha256 [requests a minute]`, see `tailorbird key`")
        elif found["sha256"] in keys:
            faults.append(f"{source}, line {number}: the key stands there twice")
        else:
            limit = found["per_minute"]
            keys[found["sha256"]] = ApiKey(found["name"], found["sha256"], int(limit) if limit else None)
    if not keys and not faults:
        faults.append(f"{source} holds no key; `tailorbird key NAME` makes one and says what to store")
    return tuple(keys.values()), faults


def read_secret(source: str) -> bytes:
    """What stands in a file's URI, or in an environment variable, `env://NAME`; raises KeysError where none is set."""
    if not source.startswith(ENVIRONMENT):
        return read_bytes(source)
    variable = source.removeprefix(ENVIRONMENT)
    if variable not in os.environ:
        raise KeysError(f"the environment of this node has no {variable}, which the recipe's serving section names")
    return os.environ[variable].encode()


def read_subject_key(source: str) -> bytes:
    """The secret that subjects are hashed by; raises KeysError for one that could be guessed."""
    key = read_secret(source).strip()
    if len(key) < KEY_BYTES:
        raise KeysError(
            f"{source} holds {len(key)} bytes; give at least {KEY_BYTES} random ones (openssl rand -hex 32)"
        )
    return key


class ApiKeyAuthenticator:
    """The keys of `source`, read again every few seconds: one that is taken out opens nothing from then on.

    A name may have several keys, the old and the new one while they are changed. Limits are of a key and a replica:
    a bucket that holds a minute's requests and fills evenly.
    """

    def __init__(self, source: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._now = now
        self._keys = read_keys(source)
        self._buckets: dict[str, tuple[float, float]] = {}
        self._fault = ""

    def authenticate(self, headers: Mapping[str, str]) -> str:
        """Who holds the key that a request's Authorization header carries; RequestError 401, or 429 over its limit."""
        authorization = headers.get("authorization", "")
        kind, _, given = authorization.partition(" ")
        offered = _sha256(given.strip())
        # All are compared, each in constant time: how long it takes tells nothing of a key that is there.
        fitting = [key for key in self._keys if hmac.compare_digest(key.sha256, offered)]
        if kind.lower() != "bearer" or not fitting:
            raise RequestError(
                401,
                "invalid_api_key" if authorization else "missing_api_key",
                "give a key that is valid here in the header `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        self._count(fitting[0])
        return fitting[0].name

    def reload(self) -> None:
        """Reads the keys again; those that no line holds any more open nothing, also where the file is gone.

        While the store does not answer, those read last stay. The log says once what is wrong.
        """
        try:
            gone = not self._source.startswith(ENVIRONMENT) and not exists(self._source)
            keys, faults = _parsed(b"" if gone else read_secret(self._source), source=self._source)
        except Exception as error:  # a store that is away must not end who may ask
            self._tell(f"those read last stay: {error}")
            return
        self._keys = keys
        self._tell("; ".join(faults))

    def _tell(self, fault: str) -> None:
        if fault and fault != self._fault:
            _log.error("the API keys could not be read again: %s", fault)
        self._fault = fault

    async def keep_current(self) -> None:
        """Reads the keys again and again, off the loop, until cancelled."""
        while True:
            await asyncio.sleep(RELOAD_S)
            await asyncio.to_thread(self.reload)

    def _count(self, key: ApiKey) -> None:
        if key.per_minute is None:
            return
        now, rate = self._now(), key.per_minute / 60
        left, at = self._buckets.get(key.sha256, (float(key.per_minute), now))
        left = min(float(key.per_minute), left + (now - at) * rate)
        if left < 1:
            wait_s = max(1, round((1 - left) / rate + 0.5))
            raise RequestError(
                429,
                "rate_limited",
                f"{key.name} may ask {key.per_minute} times a minute; ask again in {wait_s} s",
                code="rate_limit_exceeded",
                headers={"retry-after": str(wait_s)},
            )
        self._buckets[key.sha256] = (left - 1, now)


def require_local_caller(headers: Mapping[str, str]) -> None:
    """Without keys: RequestError 403 for what a page of somebody else's makes a browser on this machine ask."""
    host, origin = headers.get("host", ""), headers.get("origin", "")
    name = urlsplit(f"//{host}").hostname
    if name not in LOCAL or (origin and urlsplit(origin).netloc != host):
        raise RequestError(
            403,
            "foreign_page",
            "without API keys only this machine may ask, by the name 127.0.0.1 or localhost, and no other page from a "
            "browser; the recipe's serving.api_keys lets others in",
        )


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
