"""URIs of pretrained models: in a package index (`pypi://`), on the Hub (`hf://`), or a folder
(`s3://`, `file://`)."""

import re
from dataclasses import dataclass, replace

from pydantic_core import CoreSchema, core_schema

_URI = re.compile(
    r"""
    (?P<pypi>pypi)://(?P<package>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)
        (?:@(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)(?:\#sha256=(?P<sha256>[0-9a-f]{64}))?)?
    | hf://(?P<repository>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?
    | (?P<store>s3|file)://(?P<folder>.*)
    """,
    re.VERBOSE | re.ASCII,
)
FORMS = (
    "pypi://package, pypi://package@version#sha256=<64 hex digits>, hf://owner/name@revision, "
    "s3://… or file://…"
)


@dataclass(frozen=True)
class ModelUri:
    """A pretrained model. A package or a repository without a version is the newest one when it is
    staged.

    A field of the recipe with this type is read from the URI and written as the URI.
    """

    store: str  # `pypi`, `hf`, `s3` or `file`
    name: str  # package, `owner/name`, or path of the folder
    version: str | None = None  # of the package, or a revision of the repository
    sha256: str | None = None  # of the package's wheel

    def __str__(self) -> str:
        uri = f"{self.store}://{self.name}"
        if self.version:
            uri += f"@{self.version}"
        if self.sha256:
            uri += f"#sha256={self.sha256}"
        return uri

    @property
    def folder(self) -> str | None:
        """The URI of the folder; None for a package or a repository, which is downloaded."""
        if self.store in ("s3", "file"):
            return str(self).rstrip("/")
        return None

    @property
    def unpinned(self) -> "ModelUri":
        """The URI without version and hash."""
        return replace(self, version=None, sha256=None)

    def allows(self, resolved: "ModelUri") -> bool:
        """Return True if a resolved URI has this name, and the version and the hash if they are
        given."""
        return (
            self.unpinned == resolved.unpinned
            and self.version in (None, resolved.version)
            and self.sha256 in (None, resolved.sha256)
        )

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> CoreSchema:
        text = core_schema.no_info_after_validator_function(
            parse_model_uri, core_schema.str_schema()
        )
        return core_schema.no_info_before_validator_function(
            lambda value: str(value) if isinstance(value, cls) else value,
            text,
            serialization=core_schema.to_string_ser_schema(when_used="always"),
        )


def parse_model_uri(uri: str) -> ModelUri:
    """Return the parts of a URI; raise ValueError for another form."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise ValueError(f"{uri!r} is not a model URI; use {FORMS}")
    if match["pypi"]:
        return ModelUri("pypi", match["package"], match["version"], sha256=match["sha256"])
    if match["store"]:
        return ModelUri(match["store"], match["folder"])
    return ModelUri("hf", match["repository"], match["revision"])
