"""S3 clients configured by environment variables, and their errors as StorageError."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote

import s3fs
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow import fs as pafs

CONNECT_TIMEOUT_S = 3
READ_TIMEOUT_S = 30
NUM_ATTEMPTS = 3

_REFUSED = (
    "ACCESS_DENIED",
    "AccessDenied",
    "INVALID_ACCESS_KEY_ID",
    "InvalidAccessKeyId",
    "SIGNATURE_DOES_NOT_MATCH",
    "SignatureDoesNotMatch",
    "INVALID_SIGNATURE",
    "INVALID_CLIENT_TOKEN_ID",
    "EXPIRED_TOKEN",
    "ExpiredToken",
    "UNRECOGNIZED_CLIENT",
    "HTTP status 403",
    "Unable to locate credentials",
    "NoCredentials",
)
_UNREACHABLE = (
    "NETWORK_CONNECTION",
    "curlCode",
    "Could not connect",
    "Connect timeout",
    "Connection was closed",
    "Read timeout",
)
_NO_BUCKET = ("NO_SUCH_BUCKET", "NoSuchBucket", "specified bucket does not exist")
_CONFLICT = ("PreconditionFailed", "ConditionalRequestConflict")
_ABSENT = ("NoSuchKey", "RESOURCE_NOT_FOUND")
_READS = ("HeadObject", "GetObject")
_CLIENT_ERRORS = (OSError, ClientError, BotoCoreError)  # of pyarrow, s3fs and botocore


class StorageError(ValueError):
    """A URI that cannot be read or written. The message contains the URI, the reason and the next
    step."""


class ObjectNotFound(StorageError):
    """An object that does not exist, in a bucket that exists."""


class PreconditionFailed(StorageError):
    """A conditional write that was refused because the object has changed since it was read."""


@dataclass(frozen=True)
class RetryPolicy:
    """Minimum number of attempts of a request; AWS_MAX_ATTEMPTS (default 3) applies if it is
    larger.

    Before each retry, pyarrow waits for a random time of at most 1, 2, 4, ... 20 s.
    """

    min_attempts: int


STANDARD = RetryPolicy(1)
PERSISTENT = RetryPolicy(10)  # for work that must survive a storage outage of about a minute


@dataclass(frozen=True)
class Settings:
    """S3 settings from the environment. None selects AWS's default chain (roles, profiles)."""

    endpoint: str | None
    access_key: str | None
    secret_key: str | None = field(repr=False)
    session_token: str | None = field(repr=False)
    region: str | None
    ca_bundle: str | None
    num_attempts: int


def filesystem(uri: str, *, retry_policy: RetryPolicy = STANDARD) -> tuple[pafs.FileSystem, str]:
    """Return pyarrow's filesystem for a URI, and the path in it (`bucket/key` or an absolute path).

    Timeouts are 3 s to connect and 30 s for a response. Raises StorageError for schemes other than
    `s3` and `file`.
    """
    scheme, path = parse(uri)
    if scheme == "file":
        return pafs.LocalFileSystem(), path
    chosen = settings()
    attempts = max(chosen.num_attempts, retry_policy.min_attempts)
    return _s3(replace(chosen, num_attempts=attempts)), path


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Convert errors of pyarrow, s3fs and botocore inside the block to a StorageError about `uri`.

    It is an ObjectNotFound or a PreconditionFailed if this is the cause.
    """
    try:
        yield
    except _CLIENT_ERRORS as error:
        raise _to_storage_error(uri, error) from error


def settings() -> Settings:
    """Read the S3 settings from the environment."""

    def first_set(*names: str) -> str | None:
        return next((os.environ[name] for name in names if os.environ.get(name)), None)

    access_key = first_set("AWS_ACCESS_KEY_ID")
    secret_key = first_set("AWS_SECRET_ACCESS_KEY")
    if (access_key is None) != (secret_key is None):
        raise StorageError(
            "only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set; set both, or neither "
            "to use a role"
        )
    endpoint = first_set("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise StorageError(
            f"AWS_ENDPOINT_URL is {endpoint!r}; it must start with http:// or https://"
        )
    region = first_set("AWS_REGION", "AWS_DEFAULT_REGION") or ("us-east-1" if endpoint else None)
    attempts = first_set("AWS_MAX_ATTEMPTS") or str(NUM_ATTEMPTS)
    if not attempts.isdecimal() or int(attempts) < 1:
        raise StorageError(
            f"AWS_MAX_ATTEMPTS is {attempts!r}; give a number of 1 or more, or unset it"
        )
    return Settings(
        endpoint=endpoint,
        access_key=access_key,
        secret_key=secret_key,
        session_token=first_set("AWS_SESSION_TOKEN"),
        region=region,
        ca_bundle=first_set("AWS_CA_BUNDLE"),
        num_attempts=int(attempts),
    )


class _S3(pafs.S3FileSystem):  # type: ignore[misc]
    """pyarrow's S3 filesystem, pickled without credentials.

    Only the number of attempts is pickled. A process that unpickles the filesystem uses the
    settings of its own environment. pyarrow's own pickle contains the secret key, which Ray Train
    and Tune would store on S3, and drops the number of attempts.
    """

    def __init__(self, chosen: Settings) -> None:
        scheme, _, host = (chosen.endpoint or "https://").partition("://")
        super().__init__(
            access_key=chosen.access_key,
            secret_key=chosen.secret_key,
            session_token=chosen.session_token,
            region=chosen.region,
            scheme=scheme,
            endpoint_override=host.rstrip("/") or None,
            connect_timeout=CONNECT_TIMEOUT_S,
            request_timeout=READ_TIMEOUT_S,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=chosen.num_attempts),
            tls_ca_file_path=chosen.ca_bundle,
            allow_delayed_open=True,
        )
        self.chosen = chosen

    def __reduce__(self) -> tuple[Any, ...]:
        return _with_attempts, (self.chosen.num_attempts,)

    def get_file_info(self, paths_or_selector: Any) -> Any:
        """Return the state of a path, also if the role may list only below a prefix of the bucket.

        Then S3 answers 403 to HeadBucket, and to HeadObject for keys that do not exist.
        """
        try:
            return super().get_file_info(paths_or_selector)
        except OSError as error:
            if not isinstance(paths_or_selector, str) or not _has_code(error, _REFUSED):
                raise
            listed = _type_in_listing(paths_or_selector)
            if listed in (None, pafs.FileType.File):  # a listed file that S3 refuses to read
                raise
            return pafs.FileInfo(paths_or_selector, type=listed)


@lru_cache(maxsize=8)
def _s3(chosen: Settings) -> _S3:
    return _S3(chosen)


def _with_attempts(number: int) -> _S3:
    return _s3(replace(settings(), num_attempts=number))


def s3fs_client() -> s3fs.S3FileSystem:
    """Return the s3fs client, for reads and conditional writes; s3fs caches one per combination of
    settings.

    s3fs retries a request without a response up to five times. botocore retries a request with an
    error response once.
    """
    chosen = settings()
    timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
    return s3fs.S3FileSystem(
        key=chosen.access_key,
        secret=chosen.secret_key,
        token=chosen.session_token,
        endpoint_url=chosen.endpoint,
        client_kwargs={"region_name": chosen.region} if chosen.region else {},
        config_kwargs=timeouts | {"retries": {"max_attempts": 1}},
    )


def parse(uri: str) -> tuple[str, str]:
    """Return a URI's scheme (`s3` or `file`) and path; raise StorageError for any other scheme."""
    scheme, separator, path = uri.partition("://")
    if scheme == "file" and separator and path.startswith("/"):
        return "file", unquote(path)
    if scheme == "s3" and separator and path.partition("/")[0]:
        return "s3", path
    raise StorageError(f"{uri!r} is not a valid URI; give s3://bucket/key or file:///absolute/path")


def require_bucket(uri: str) -> None:
    """Raise StorageError if the bucket of `uri` does not exist."""
    scheme, path = parse(uri)
    if scheme == "s3":
        bucket = filesystem(uri)[0].get_file_info(path.partition("/")[0])
        if bucket.type == pafs.FileType.NotFound:
            raise _no_bucket(uri)


def _type_in_listing(path: str) -> pafs.FileType | None:
    """Return the type of `bucket/key` in a list of objects; None if the role may not list it.

    A bucket is always a directory, because S3 answers 404 to HeadBucket for a bucket that does not
    exist.
    """
    bucket, _, key = path.rstrip("/").partition("/")
    if not key:
        return pafs.FileType.Directory
    first_key = partial(s3fs_client().call_s3, "list_objects_v2", Bucket=bucket, MaxKeys=1)
    try:  # keys are sorted, so a key is listed before longer ones that begin with it
        first = first_key(Prefix=key).get("Contents")
        below = first_key(Prefix=f"{key}/").get("Contents")
    except _CLIENT_ERRORS:
        return None
    if first and first[0]["Key"] == key:
        return pafs.FileType.File
    if below:
        return pafs.FileType.Directory
    return pafs.FileType.NotFound


def _to_storage_error(uri: str, error: Exception) -> StorageError:
    """Return a StorageError for an error of a storage client. Its line has the URI, the cause and
    the next step."""
    if _has_code(error, _NO_BUCKET):
        return _no_bucket(uri)
    if _is_absent(error, uri=uri):
        try:
            require_bucket(uri)
        except StorageError as missing:
            return missing
        except OSError as other:
            return _to_storage_error(uri, other)
        return ObjectNotFound(f"{uri} does not exist; check the URI, or create it first")
    if parse(uri)[0] == "file":
        return StorageError(
            f"{uri}: {getattr(error, 'strerror', None) or error}; check the path and its "
            "permissions"
        )
    if isinstance(error, FileExistsError) or _has_code(error, _CONFLICT):
        return PreconditionFailed(
            f"{uri} was not written, because it has changed; read it again and retry"
        )
    if _is_refused(error):
        remedy = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role's policy"
        return StorageError(f"{uri}: access denied by {_endpoint()}; {remedy} ({error})")
    if _has_code(error, _UNREACHABLE) or isinstance(error, (ConnectionError, TimeoutError)):
        reason = (
            "is not reachable; check AWS_ENDPOINT_URL, and check that the server is running "
            f"({error})"
        )
        return StorageError(f"{uri}: {_endpoint()} {reason}")
    return StorageError(
        f"{uri}: {_endpoint()} returned an error; try again, or check the server's log and its "
        f"disk space ({error})"
    )


def _no_bucket(uri: str) -> StorageError:
    bucket = parse(uri)[1].partition("/")[0]
    return StorageError(
        f"{uri}: bucket {bucket!r} does not exist at {_endpoint()}; create it, or correct the URI"
    )


def _endpoint() -> str:
    return settings().endpoint or "AWS S3"


def _has_code(error: Exception, codes: tuple[str, ...]) -> bool:
    text = f"{error} {error.__cause__ or ''}"
    return any(code in text for code in codes)


def _is_absent(error: Exception, *, uri: str) -> bool:
    """Return True if an error of a request for `uri` means that the object does not exist.

    S3 answers 403 to the read of such an object if the role may list only below a prefix of the
    bucket.
    """
    if isinstance(error, (FileNotFoundError, NotADirectoryError)) or _has_code(error, _ABSENT):
        return True
    scheme, path = parse(uri)
    refused_read = scheme == "s3" and _is_refused(error) and _has_code(error, _READS)
    return refused_read and _type_in_listing(path) == pafs.FileType.NotFound


def _is_refused(error: Exception) -> bool:
    return isinstance(error, PermissionError) or _has_code(error, _REFUSED)
