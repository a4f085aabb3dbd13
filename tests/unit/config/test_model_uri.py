"""URIs of base models with versions, hashes and revisions."""

import pytest

from tailorbird.config.model_uri import ModelUri, parse_model_uri

SHA = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        (f"pypi://a@1!2.0#sha256={SHA}", ModelUri("pypi", "a", "1!2.0", SHA)),
        ("hf://owner/name@refs/pr/1", ModelUri("hf", "owner/name", "refs/pr/1")),
        ("s3://models/base@2/", ModelUri("s3", "models/base@2/")),
    ],
)
def test_a_uri_is_parsed_and_written_again(uri: str, parts: ModelUri) -> None:
    assert parse_model_uri(uri) == parts
    assert str(parts) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "pypi://a==1.0",
        f"pypi://a@1.0#sha256={SHA[1:]}",
        f"pypi://a#sha256={SHA}",
        "pypi://a@--index-url=x",
        "pypi://a@1.0 --pre",
        "pypi://a\n",
        "hf://a/b/c",
    ],
)
def test_another_form_is_rejected_with_the_allowed_ones(uri: str) -> None:
    with pytest.raises(
        ValueError, match=r"is not a model URI; use pypi://package, pypi://package@version#sha256="
    ):
        parse_model_uri(uri)


@pytest.mark.parametrize(
    ("uri", "is_allowed"),
    [
        ("pypi://a", True),
        ("pypi://a@1.0", True),
        (f"pypi://a@1.0#sha256={SHA}", True),
        ("pypi://a@1.1", False),
        (f"pypi://a@1.0#sha256={'0' * 64}", False),
        ("pypi://b", False),
        ("hf://a", False),
    ],
)
def test_a_uri_allows_a_staged_model_of_its_name_version_and_hash(
    uri: str, is_allowed: bool
) -> None:
    assert parse_model_uri(uri).allows(ModelUri("pypi", "a", "1.0", SHA)) == is_allowed
