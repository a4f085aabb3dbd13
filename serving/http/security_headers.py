"""Security headers of responses."""

import re
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256

DATA_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of responses without scripts, styles and images."""
_CONSTANT = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),  # for browsers that do not know frame-ancestors
)
MARK = _CONSTANT[0]
"""Header that all responses of a replica's application have, and Serve's own responses do not."""


def security_headers(policy: str = DATA_POLICY) -> list[tuple[bytes, bytes]]:
    """Return the headers that every response has, with a Content-Security-Policy."""
    return [*_CONSTANT, (b"content-security-policy", policy.encode())]


def page_policy(html: str) -> str:
    """Return the Content-Security-Policy of a page, which allows its own styles by their hashes.

    A page that names a script can load scripts from its own origin and send requests to it; scripts
    in the page do not run. Images must be in the page.
    """
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    allowed = [f"style-src {_hashes(styles)}", "img-src data:"]
    if "<script src=" in html:
        allowed += ["script-src 'self'", "connect-src 'self'"]
    return "; ".join([DATA_POLICY, *allowed])


def _hashes(blocks: Iterable[str]) -> str:
    return (
        " ".join(
            f"'sha256-{b64encode(sha256(block.encode()).digest()).decode()}'" for block in blocks
        )
        or "'none'"
    )
