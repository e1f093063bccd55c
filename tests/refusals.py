"""Records the answers with a status of 400 or more to the tests' clients, for the search at the end of a run.

An answer that is read in parts belongs to its reader: a service in this process reads those of issuers so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

# The functions before any recording. If one recording runs within another, it replaces the outer one for that time.
_send, _send_async = httpx2.Client.send, httpx2.AsyncClient.send


_WITH_COOKIES = {"set-cookie", "x-auth-set-cookie-access", "x-auth-set-cookie-refresh"}
"""The fields that are left out: a 403 of a proxy's demand gives the rotated tokens to the browser."""


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """While the block runs, writes each refusal's header fields and body to a file that the search reads as a log."""
    with (folder / "service-refusals.log").open("a") as log, pytest.MonkeyPatch.context() as patch:

        def record(answer: httpx2.Response) -> None:
            fields = [(name, value) for name, value in answer.headers.multi_items() if name not in _WITH_COOKIES]
            log.write(json.dumps([answer.status_code, fields, answer.text]) + "\n")

        def send(self: httpx2.Client, request: httpx2.Request, **options: Any) -> httpx2.Response:
            answer = _send(self, request, **options)
            if answer.status_code >= 400 and not options.get("stream"):
                answer.read()
                record(answer)
            return answer

        async def send_async(self: httpx2.AsyncClient, request: httpx2.Request, **options: Any) -> httpx2.Response:
            answer = await _send_async(self, request, **options)
            if answer.status_code >= 400 and not options.get("stream"):
                await answer.aread()
                record(answer)
            return answer

        patch.setattr(httpx2.Client, "send", send)
        patch.setattr(httpx2.AsyncClient, "send", send_async)
        yield
