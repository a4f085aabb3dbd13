"""Security headers of responses."""

import re
from base64 import b64encode
from hashlib import sha256

import pytest

from serving.http.asgi import Page
from serving.http.openapi import openapi
from serving.http.security_headers import DATA_POLICY, page_policy
from serving.pages.render import render_docs, render_page
from tailorbird.config.serving import ServingConfig

PAGES = {
    "classify": render_page("classify"),
    "chat": render_page("chat"),
    "docs": render_docs(openapi({}, config=ServingConfig())),
}


def _directives(policy: str) -> dict[str, str]:
    return dict((*part.split(" ", 1), "")[:2] for part in policy.split("; "))  # type: ignore[misc]


@pytest.mark.parametrize("page", PAGES.values(), ids=list(PAGES))
def test_a_page_allows_only_its_own_styles_and_scripts_of_its_origin(page: Page) -> None:
    html, allowed = page.content.decode(), _directives(page.policy)
    assert page.policy.startswith(DATA_POLICY)
    blocks = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    hashes = [f"'sha256-{b64encode(sha256(block.encode()).digest()).decode()}'" for block in blocks]
    assert allowed["style-src"].split() == hashes
    assert html.count("<style") == len(blocks)
    scripts = re.findall(r"<script.*?</script>", html, re.DOTALL)
    assert scripts in ([], ['<script src="page.js" defer></script>'])
    assert allowed.get("script-src") == ("'self'" if scripts else None)
    assert "unsafe" not in page.policy
    assert (
        re.search(r"""\son\w+=|\sstyle=""", html) is None
    )  # a policy with hashes blocks these attributes


def test_a_page_without_a_script_cannot_send_requests() -> None:
    allowed = _directives(page_policy("<p>text</p>"))
    assert allowed["style-src"] == "'none'"
    assert not {"script-src", "connect-src"} & set(allowed)
