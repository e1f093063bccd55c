"""The way out of the stand-in: back-channel logout tokens and webhooks to the addresses that a test names."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode, urlsplit

from . import rest, webhooks
from .minting import claims_of
from .scalekit import Scalekit
from .store import Session

LIMIT = 10.0
"""Seconds within which the receiver must answer, as Scalekit documents for its webhooks."""


class Outgoing:
    """Sends what the end of a session brings about, and notes each try."""

    def __init__(self, scalekit: Scalekit, webhook_secret: str) -> None:
        self._scalekit = scalekit
        self._secret = webhook_secret
        self._tasks: set[asyncio.Task[None]] = set()
        self.back_channel: list[str] = []
        self.webhooks: list[str] = []
        self.tried: list[dict[str, Any]] = []

    def ended(self, session: Session) -> None:
        token = self.logout_token(session) if self.back_channel else ""
        for url in self.back_channel:
            form = urlencode({"logout_token": token}).encode()
            fields = {"content-type": "application/x-www-form-urlencoded"}
            self._begin(self._deliver("back_channel", url, fields, form, 1))
        if self.webhooks:
            details = rest.get_session(self._scalekit.store, session.session_id)
            moments = {
                name: getattr(details[name], "isoformat", str)() for name in ("absolute_expires_at", "idle_expires_at")
            }
            event = webhooks.user_logout({**details, **moments, "email": session.user.email})
            for url in self.webhooks:
                fields, body = webhooks.signed(event, self._secret)
                self._begin(self._deliver("webhook", url, fields, body, self._scalekit.store.settings.tries))

    def logout_token(self, session: Session, **changes: Any) -> str:
        kind = self._scalekit.store.settings.logout_type
        now = self._scalekit.store.now()
        claims = claims_of(
            "logout_token",
            issuer=self._scalekit.url,
            client_id=self._scalekit.client_id,
            subject=session.subject,
            now=int(now.timestamp()),
        )
        return self._scalekit.keys.named(self._scalekit.signing).token({**claims, **changes}, {"typ": kind})

    def forget(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.back_channel, self.webhooks, self.tried = [], [], []

    def _begin(self, delivery: Any) -> None:
        task = asyncio.create_task(delivery)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, kind: str, url: str, fields: Mapping[str, str], body: bytes, tries: int) -> None:
        pause = self._scalekit.store.settings.pause
        for number in range(1, tries + 1):
            status = 0
            with suppress(OSError, ValueError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(LIMIT):
                    status = await _post(url, fields, body)
            self.tried.append({"kind": kind, "url": url, "try": number, "status": status})
            if 200 <= status < 300:
                return
            await asyncio.sleep(pause)
            pause *= 2


async def _post(url: str, fields: Mapping[str, str], body: bytes) -> int:
    """Sends one request and returns the status of its answer. Tests may use any certificate here."""
    parts = urlsplit(url)
    context = None
    if parts.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    port = parts.port or (443 if context else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
    try:
        every = {"host": parts.netloc, "connection": "close", "content-length": str(len(body)), **fields}
        head = "".join(f"{name}: {value}\r\n" for name, value in every.items())
        writer.write(f"POST {parts.path or '/'} HTTP/1.1\r\n{head}\r\n".encode() + body)
        await writer.drain()
        return int((await reader.readuntil(b"\r\n")).split()[1])
    finally:
        writer.close()
