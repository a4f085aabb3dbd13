"""API keys: the lines of the key file, with scopes, expiry and limits. Only hashes of keys are
stored.

Read next `authenticator.py`, which checks the key of each request.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import takewhile
from typing import Annotated, Literal, NamedTuple, cast, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from serving.http.schemas import LOCAL, RequestError
from tailorbird.storage import read_bytes

ENVIRONMENT = "env://"
PREFIX = "tb-"
KEY_BYTES = 32
LOCAL_HOST = re.compile(
    rf"({'|'.join(re.escape(f'[{name}]' if ':' in name else name) for name in LOCAL)})(:\d{{1,5}})?"
)

KeyScope = Literal["answer", "feedback", "read", "admin"]
SCOPES: tuple[KeyScope, ...] = get_args(KeyScope)
DEFAULT_SCOPES: tuple[KeyScope, ...] = ("answer", "feedback")
OPTIONS = (
    f"scopes={','.join(SCOPES)} (one or more), expires=YYYY-MM-DD, requests=N, texts=N, tokens=N"
)
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class KeysError(ValueError):
    """API keys that cannot be read. The message gives the line number and never the content of the
    line."""


def _in_order(scopes: object) -> object:
    """Return the scopes of a text in the order of `SCOPES`."""
    if not isinstance(scopes, str):
        return scopes
    return sorted(set(scopes.split(",")), key=lambda scope: SCOPES.index(cast(KeyScope, scope)))


def _day(text: object) -> object:
    """Return the day of a text in ISO format, which for pydantic can also be a Unix time."""
    return date.fromisoformat(text) if isinstance(text, str) else text


Limit = Annotated[int, Field(gt=0)]


class KeyOptions(BaseModel):
    """What a key may do, until when, and how much. A limit is per minute and replica; None for no
    limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scopes: Annotated[tuple[KeyScope, ...], BeforeValidator(_in_order)] = DEFAULT_SCOPES
    expires: Annotated[date | None, BeforeValidator(_day)] = None
    """The last day on which the key is valid, in UTC."""
    requests: Limit | None = None
    texts: Limit | None = None
    tokens: Limit | None = None

    @property
    def limits(self) -> dict[str, int]:
        """Return the limits that are set, by quantity."""
        limits = {"requests": self.requests, "texts": self.texts, "tokens": self.tokens}
        return {quantity: limit for quantity, limit in limits.items() if limit is not None}

    def __str__(self) -> str:
        """Return the options as in the key file. Scopes are always given, because the default may
        change."""
        values = self.model_dump() | {"scopes": ",".join(self.scopes)}
        return " ".join(f"{name}={value}" for name, value in values.items() if value is not None)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored API key."""

    name: str
    sha256: str
    """SHA-256 of the key. A key has 256 random bits, so it needs no salt and no slow hash."""
    options: KeyOptions = field(default_factory=KeyOptions)

    def to_line(self) -> str:
        """Return the key's line in the key file."""
        return f"{self.name} {self.sha256} {self.options}"


class KeyFile(NamedTuple):
    """The content of a key file."""

    keys: tuple[ApiKey, ...]
    errors: tuple[str, ...] = ()
    """An error for each line that cannot be read, without the content of the line."""
    unreadable: frozenset[str] = frozenset()
    """The words of these lines without quotation marks, some of which are names and hashes of
    keys."""


def new_key(name: str, *, options: Sequence[str] = ()) -> tuple[str, ApiKey]:
    """Return a new random key for the client, and the `ApiKey` to store; `options` are as in the
    key file.

    Raises KeysError for a name or an option that is not valid.
    """
    if not _NAME.fullmatch(name):
        raise KeysError(
            f"name {name!r} is not valid: a name has 1 to 64 letters, digits, dots, dashes, "
            "underscores or @"
        )
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    return key, ApiKey(name, sha256_of(key), parse_options(options))


def sha256_of(key: str) -> str:
    """Return the hash under which a key is stored."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(source: str) -> KeyFile:
    """Return the keys in a file, or in an environment variable (`env://NAME`).

    Each line holds one key; `#` starts a comment.
    """
    return parse_keys(read_secret(source), source=source)


def parse_keys(content: bytes, *, source: str) -> KeyFile:
    """Return the keys of the valid lines, and an error for each other line; `source` is named in
    the errors."""
    keys: dict[str, ApiKey] = {}
    errors = list[str]()
    unreadable = set[str]()
    for number, line in enumerate(content.decode("utf-8-sig", "replace").splitlines(), 1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        try:
            key = _parse_line(text)
            if key.sha256 in keys:
                raise KeysError("duplicate key")
        except KeysError as error:
            errors.append(f"{source}, line {number}: {error}")
            words = takewhile(lambda word: "=" not in word, text.split())  # without options
            unreadable.update(word.strip("\"'`,;") for word in words)
        else:
            keys[key.sha256] = key
    return KeyFile(tuple(keys.values()), tuple(errors), frozenset(unreadable))


def keys_in_force(file: KeyFile, *, previous: Sequence[ApiKey]) -> tuple[ApiKey, ...]:
    """Return the keys in force after a change of the file. A mistake in a line neither adds nor
    removes a key.

    A line that cannot be read leaves the previous keys unchanged whose name or hash is one of its
    words before the options. If no line can be read, for example because of the file's encoding,
    all previous keys stay. An empty file removes all keys.
    """
    if file.errors and not file.keys:
        return tuple(previous)
    keys = {key.sha256: key for key in file.keys}
    for key in previous:
        if {key.name, key.sha256} & file.unreadable:
            keys.setdefault(key.sha256, key)
    return tuple(keys.values())


def _parse_line(text: str) -> ApiKey:
    words = text.split()
    if len(words) < 2 or not _NAME.fullmatch(words[0]) or not _SHA256.fullmatch(words[1]):
        raise KeysError("must be `name sha256 [options]`; run `tailorbird key NAME` to make a key")
    return ApiKey(words[0], words[1], parse_options(words[2:]))


def parse_options(words: Sequence[str]) -> KeyOptions:
    """Return the options of a key; raise KeysError, without their values, if one is not valid."""
    options = dict(word.split("=", 1) for word in words if "=" in word)
    try:
        if len(options) < len(words):
            raise ValueError
        return KeyOptions.model_validate(options)
    except ValueError:
        raise KeysError(
            f"an option is unknown, given twice or not valid; the options are {OPTIONS}"
        ) from None


def read_secret(source: str) -> bytes:
    """Return the content of a file or of an environment variable (`env://NAME`).

    Raises KeysError if the variable is not set.
    """
    if not source.startswith(ENVIRONMENT):
        return read_bytes(source)
    variable = source.removeprefix(ENVIRONMENT)
    if variable not in os.environ:
        raise KeysError(
            f"environment variable {variable}, which the recipe's serving section names, is not "
            "set on this node"
        )
    return os.environ[variable].encode()


def require_local_caller(headers: Mapping[str, str]) -> None:
    """Raise RequestError 403 unless the request is local and same-origin; for services without API
    keys."""
    host = headers.get("host", "").lower()
    origin = headers.get("origin", "").lower()
    if not LOCAL_HOST.fullmatch(host) or origin not in ("", f"http://{host}", f"https://{host}"):
        message = (
            "without API keys, only requests to 127.0.0.1 or localhost from this machine are "
            "accepted, and none from pages of other sites; set serving.api_keys in the recipe to "
            "accept others"
        )
        raise RequestError(403, "foreign_page", message)


def require_same_origin(headers: Mapping[str, str]) -> None:
    """Raise RequestError 403 for a request of a browser from a page of another origin, which could
    use its cookies.

    Browsers state the relation in `Sec-Fetch-Site`, except to sites without TLS and old browsers:
    then the host of `Origin` must be that of `Host` or `X-Forwarded-Host`, which such a page cannot
    set.
    """
    site = headers.get("sec-fetch-site")
    origin = headers.get("origin")
    if site is not None:
        is_same_origin = site in ("same-origin", "none")
    else:
        hosts = [headers.get("host", ""), *headers.get("x-forwarded-host", "").split(",")]
        is_same_origin = origin is None or _host_name(origin) in {
            _host_name(host) for host in hosts if host
        }
    if not is_same_origin:
        message = (
            "requests from pages of other origins are not accepted; a gateway can pass Host or "
            "X-Forwarded-Host, or check and remove Origin and Sec-Fetch-Site"
        )
        raise RequestError(403, "foreign_page", message)


def _host_name(text: str) -> str:
    """Return the host of an origin or of a `Host` header, without the port."""
    return re.sub(r"^https?://|:\d+$", "", text.strip().lower())
