from pathlib import Path

import pytest
from aiohttp import web

from cluster.dashboard import request_dashboard
from tests.unit.cluster.dashboard import running_dashboard


def test_the_token_is_sent_even_if_netrc_has_an_entry_for_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login another password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ours")
    sent = []

    async def record(request: web.Request) -> web.Response:
        sent.append(request.headers["Authorization"])
        return web.json_response({})

    with running_dashboard(version=record) as address:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        request_dashboard("GET", "/api/version")
    assert sent == ["Bearer ours"]
