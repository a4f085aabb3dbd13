"""The S3 locations that a batch may read and write."""

from serving.batch_jobs.schema import BatchError


def is_under(uri: str, prefix: str) -> bool:
    """Return True if a URI equals a prefix or is under it."""
    return uri == prefix or uri.startswith(f"{prefix}/")


def normalized_locations(*, input: str, output: str) -> tuple[str, str]:
    """Return both URIs without trailing slashes; raise BatchError if one is ambiguous or contains
    the other."""
    input = input.rstrip("/")
    output = output.rstrip("/")
    for name, uri in (("input", input), ("output", output)):
        parts = uri.removeprefix("s3://").split("/")
        is_clear = all(parts) and not {".", ".."} & set(parts) and uri.isprintable()
        if not uri.startswith("s3://") or len(parts) < 2 or not is_clear:
            raise BatchError(
                f"{name} is {uri!r}; give s3://bucket/prefix without empty parts, `.`, `..` and "
                "control characters"
            )
    if is_under(input, output) or is_under(output, input):
        raise BatchError(f"input {input} and output {output} overlap; give another output")
    return input, output
