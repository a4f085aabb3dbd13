"""Asynchronous tests (marked `anyio`) run on asyncio, as replicas do."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
