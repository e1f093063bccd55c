"""The functions by which tests drive the stand-in. `POST /` of the control port names one, with its arguments."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from . import rest
from .outgoing import Outgoing
from .scalekit import Scalekit
from .store import Ended, Store
from .wire import Answer, Fault, Request, Wire


class Control:
    """Each public method is a function of the control port. Its arguments and its result are JSON."""

    def __init__(self, scalekit: Scalekit, wire: Wire, outgoing: Outgoing) -> None:
        self._scalekit = scalekit
        self._wire = wire
        self._outgoing = outgoing
        scalekit.store.on_end = outgoing.ended

    async def serve(self, request: Request) -> Answer:
        asked = json.loads(request.body or b'{"name": "ready", "arguments": {}}')
        if asked["name"].startswith("_") or asked["name"] == "serve":
            return Answer(404, {})
        try:
            return Answer(200, {"result": await getattr(self, asked["name"])(**asked.get("arguments", {}))})
        except (LookupError, TypeError, AttributeError, ValueError, rest.Refused) as error:
            return Answer(400, {"error": f"{type(error).__name__}: {error}"})

    async def ready(self) -> bool:
        return True

    async def reset(self) -> None:
        """Forget everything but the address: users, sessions, faults, notes, settings, keys."""
        store = self._scalekit.store
        fresh = Store()
        for each in fields(Store):
            setattr(store, each.name, getattr(fresh, each.name))
        store.on_end = self._outgoing.ended
        self._scalekit.published, self._scalekit.signing = ["snk_1"], "snk_1"
        self._outgoing.forget()
        self._wire.faults, self._wire.seen = [], []
        self._wire.context.load_cert_chain(str(self._scalekit.keys.server_file()))
        await self._wire.listen()

    async def settings(self, **values: Any) -> None:
        self._scalekit.store.settings.set(**values)

    async def publish(self, kids: list[str], signing: str) -> None:
        """Set the keys that `/keys` shows, and the one that signs."""
        self._scalekit.published, self._scalekit.signing = kids, signing

    async def certificate(self, name: str) -> None:
        """Set the certificate of new connections: `server` or `stranger`."""
        self._wire.context.load_cert_chain(str(self._scalekit.keys.server_file(name)))

    async def fault(self, **members: Any) -> None:
        self._wire.faults.append(Fault(**members))

    async def heal(self) -> None:
        """End all faults, and listen again."""
        self._wire.faults = []
        await self._wire.listen()

    async def refuse(self) -> None:
        await self._wire.refuse()

    async def seen(self) -> list[dict[str, Any]]:
        """Every request so far: method, path, moment, status."""
        return self._wire.seen

    async def forget_seen(self) -> None:
        self._wire.seen = []

    async def send_to(self, back_channel: list[str], webhooks: list[str]) -> None:
        self._outgoing.back_channel, self._outgoing.webhooks = back_channel, webhooks

    async def tried(self) -> list[dict[str, Any]]:
        """Every delivery that was tried: kind, address, number of the try, status (0: no answer)."""
        return self._outgoing.tried

    async def allow_redirects(self, uris: list[str]) -> None:
        self._scalekit.store.redirects = set(uris)

    async def sign_in(
        self, email: str, user: dict[str, Any] | None = None, session: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A new session of a user, as after a login with a browser, and its tokens."""
        store = self._scalekit.store
        begun = store.begin(store.user(email, **(user or {})), self._scalekit.client_id, **(session or {}))
        about = {
            "session_id": begun.session_id,
            "user_id": begun.user.user_id,
            "organization_id": begun.user.organization_id,
        }
        return {**self._scalekit.tokens(begun, "openid profile email offline_access"), **about}

    async def tokens(self, session_id: str) -> dict[str, Any]:
        """Further tokens of a session."""
        return self._scalekit.tokens(self._scalekit.store.sessions[session_id], "openid profile email offline_access")

    async def session(self, session_id: str) -> dict[str, Any]:
        return rest.get_session(self._scalekit.store, session_id)

    async def sessions_of(self, user_id: str) -> list[str]:
        """The ids of a user's active sessions."""
        return [each.session_id for each in self._scalekit.store.of_user(user_id, ["active"], None, None)]

    async def end(self, session_id: str, how: Ended) -> bool:
        store = self._scalekit.store
        return store.end(store.sessions[session_id], how)

    async def forget_machine_tokens(self) -> None:
        """Refuse each management token that was issued, as if it had expired."""
        self._scalekit.store.machine_tokens.clear()
