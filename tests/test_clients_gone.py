"""Clients that gave up while Keyturn stood still: their requests wait in the kernel, and nobody reads the answers."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import httpx2
import pytest

from tests.processes import ACCOUNT, keyturn_for_browsers, keyturn_settings


@pytest.mark.parametrize("mode", ["bearer", "cookie"])
async def test_no_token_is_rotated_for_a_client_that_gave_up_while_keyturn_stood_still(
    tmp_path: Path, logs: Path, mode: str
) -> None:
    """The retry window is 0, so the token would count as reused if it had been rotated."""
    environment = keyturn_settings(tmp_path, "http://127.0.0.1:8000", 30, retry_window="0")
    own = {"Origin": "http://127.0.0.1:8000"}
    async with (
        keyturn_for_browsers(environment, logs) as service,
        httpx2.AsyncClient(base_url=service.url, trust_env=False, timeout=20, headers=own) as client,
    ):
        answer = await client.post("/auth/login", json={**ACCOUNT, "mode": mode})
        token = answer.json().get("refresh_token")
        fields = {**own, "Cookie": "; ".join(f"{each.name}={each.value}" for each in client.cookies.jar)}
        request = client.build_request(
            "POST", "/auth/refresh", headers=fields, json={"refresh_token": token} if token else {}
        )
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        service.pause()
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", service.port), timeout=5) as connection:
                connection.sendall(f"POST /auth/refresh HTTP/1.1\r\n{head}\r\n".encode() + request.content)
        await asyncio.sleep(2.5)  # longer than a busy process may take for a turn of its loop
        service.resume()
        async with asyncio.timeout(10):
            while (await client.get("/readyz")).status_code != 200:  # ready again
                await asyncio.sleep(0.1)
        refreshed = await client.send(request)
        assert refreshed.status_code == 200, refreshed.text
        assert service.text_with("the client has gone", 10).count("the client has gone") == 10
