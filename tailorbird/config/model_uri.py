"""URIs of base models in a package index (`pypi://`) or on the Hub (`hf://`)."""

import re
from dataclasses import dataclass, replace

_URI = re.compile(
    r"""
    (?P<pypi>pypi)://(?P<package>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)
        (?:@(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)(?:\#sha256=(?P<sha256>[0-9a-f]{64}))?)?
    | hf://(?P<repository>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?
    """,
    re.VERBOSE | re.ASCII,
)
FORMS = "pypi://package, pypi://package@version#sha256=<64 hex digits>, hf://owner/name@revision, s3://… or file://…"


@dataclass(frozen=True)
class ModelUri:
    """A base model in a package index or on the Hub. Without a version, it is the newest when it is staged."""

    store: str  # `pypi` or `hf`
    name: str  # package, or `owner/name`
    version: str | None = None  # of the package, or a revision of the repository
    sha256: str | None = None  # of the package's wheel

    def __str__(self) -> str:
        version = f"@{self.version}" if self.version else ""
        return f"{self.store}://{self.name}{version}" + (f"#sha256={self.sha256}" if self.sha256 else "")

    @property
    def unpinned(self) -> "ModelUri":
        """The URI without version and hash."""
        return replace(self, version=None, sha256=None)

    def allows(self, resolved: "ModelUri") -> bool:
        """Return True if a resolved URI has this name, and the version and the hash if they are given."""
        return self.unpinned == resolved.unpinned and all(
            wanted in (None, actual)
            for wanted, actual in ((self.version, resolved.version), (self.sha256, resolved.sha256))
        )


def parse_model_uri(uri: str) -> ModelUri:
    """Return the parts of a `pypi://` or `hf://` URI; raise ValueError for another form."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise ValueError(f"{uri!r} is not a model URI; use {FORMS}")
    if match["pypi"]:
        return ModelUri("pypi", match["package"], match["version"], match["sha256"])
    return ModelUri("hf", match["repository"], match["revision"])
