"""Authentication of requests by API keys, which are reloaded while the service runs."""

import asyncio
import hmac
import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, date, datetime

from serving.http.api_keys import (
    ENVIRONMENT,
    ApiKey,
    KeyFile,
    KeyScope,
    KeysError,
    keys_in_force,
    read_keys,
    sha256_of,
)
from serving.http.asgi import caller
from serving.http.schemas import RequestError
from serving.limits import RateLimiter
from tailorbird.storage import exists

OnChange = Callable[[Sequence[ApiKey] | None, Sequence[ApiKey]], None]
"""Receives the former keys (None at the start) and the new keys."""

RELOAD_S = 5.0
MAX_LOGGED = 5  # errors in one message

_log = logging.getLogger("ray.serve")

# the valid key of the current request
_key: ContextVar[ApiKey | None] = ContextVar("key", default=None)


def has_scope(*scopes: KeyScope) -> bool:
    """Return True if the current request has a key with one of the scopes."""
    key = _key.get()
    return key is not None and any(scope in key.options.scopes for scope in scopes)


def is_admin() -> bool:
    """Return True if the current request has a key with the scope `admin`."""
    return has_scope("admin")


def utc_today() -> date:
    """Return the current day in UTC."""
    return datetime.now(UTC).date()


class ApiKeyAuthenticator:
    """Authenticator of requests by the keys in `source`.

    The keys are reloaded every few seconds, which revokes removed keys. A name may have several
    keys, which allows rotation.
    """

    def __init__(
        self,
        source: str,
        *,
        limiter: RateLimiter | None = None,
        today: Callable[[], date] = utc_today,
        on_change: OnChange = lambda _previous, _new: None,
    ) -> None:
        self._source = source
        self._limiter = limiter or RateLimiter()
        self._today = today
        self._on_change = on_change
        self._last_error = ""
        self.num_errors = 0
        """Number of lines of the key file that cannot be read now; 1 if the file cannot be read."""
        file = read_keys(source)
        self._keys = file.keys
        if not file.keys:
            raise KeysError(file.errors[0] if file.errors else _no_key(source))
        on_change(None, self._keys)
        self._report(file.errors)

    def identify(self, headers: Mapping[str, str]) -> ApiKey | None:
        """Return the key in the Authorization header, or None if it is missing or not valid."""
        scheme, _, text = headers.get("authorization", "").partition(" ")
        sha256 = sha256_of(text.strip())
        # Compare all keys in constant time: the response time must not reveal anything about the
        # stored keys.
        matches = [stored for stored in self._keys if hmac.compare_digest(stored.sha256, sha256)]
        key = matches[0] if matches and scheme.lower() == "bearer" else None
        is_valid = key is not None and not self._is_expired(key)
        # also for an expired key, whose owner the security log names
        caller.set(key.name if key else None)
        _key.set(key if is_valid else None)
        return key

    def authenticate(self, headers: Mapping[str, str], *, scopes: Sequence[KeyScope]) -> None:
        """Set the caller, and charge a request. The key must have one of the scopes; without
        scopes, any key will do.

        Raises RequestError 401 for a missing, invalid or expired key, 403 for a key without the
        scope, and 429 for a key that is over a limit.
        """
        key = self.identify(headers)
        if key is None:
            if headers.get("authorization"):
                type = "invalid_api_key"
            else:
                type = "missing_api_key"
            message = "give a valid API key in the header `Authorization: Bearer KEY`"
            raise _unauthorized(type, message)
        if self._is_expired(key):
            message = (
                f"the API key {key.name} expired on {key.options.expires}; ask the operator for a "
                "new key"
            )
            raise _unauthorized("expired_api_key", message)
        if scopes and not set(scopes) & set(key.options.scopes):
            needed = " or ".join(scopes)
            given = ", ".join(key.options.scopes)
            message = (
                f"this route needs a key with the scope {needed}; the key {key.name} has {given}"
            )
            raise RequestError(403, "missing_scope", message, code="missing_scope")
        self._limiter.accept(key)

    def charge(self, **amounts: int) -> None:
        """Charge texts or tokens to the key of the current request."""
        key = _key.get()
        if key is not None:
            self._limiter.charge(key, **amounts)

    def _is_expired(self, key: ApiKey) -> bool:
        return key.options.expires is not None and self._today() > key.options.expires

    def reload(self) -> None:
        """Reload the keys. A removed key is no longer valid; a deleted file removes all keys.

        While storage is unavailable, the last keys stay valid, and so do those of lines that cannot
        be read; see `keys_in_force`. An error is logged once.
        """
        try:
            if self._source.startswith(ENVIRONMENT) or exists(self._source):
                file = read_keys(self._source)
            else:
                file = KeyFile(())
        except Exception as error:  # unavailable storage must not lock clients out
            self._report([f"the last keys stay valid, because the keys cannot be read: {error}"])
            return
        previous = self._keys
        self._keys = keys_in_force(file, previous=previous)
        if set(self._keys) != set(previous):
            self._on_change(previous, self._keys)
        self._report(file.errors if self._keys else [_no_key(self._source)])

    def _report(self, errors: Sequence[str]) -> None:
        message = "; ".join(errors[:MAX_LOGGED])
        self.num_errors = len(errors)
        if message and message != self._last_error:
            _log.error("%d errors in the API keys: %s", self.num_errors, message)
        self._last_error = message

    async def keep_current(self) -> None:
        """Reload the keys every few seconds, in a thread, until cancelled."""
        while True:
            await asyncio.sleep(RELOAD_S)
            await asyncio.to_thread(self.reload)


def _no_key(source: str) -> str:
    return f"{source} contains no key; run `tailorbird key NAME` to make a key"


def _unauthorized(type: str, message: str) -> RequestError:
    return RequestError(
        401, type, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"}
    )
