"""The gRPC service of sessions, on the classes that come with Scalekit's SDK. Needs that SDK.

The SDK calls sessions by gRPC alone, so this is the side on which the SDK judges the stand-in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp
from scalekit.v1.sessions import sessions_pb2, sessions_pb2_grpc

from . import rest
from .rest import Refused
from .store import Store


class Sessions(sessions_pb2_grpc.SessionServiceServicer):  # type: ignore[misc]  # the SDK has no types
    """The service of sessions, on the same store as the REST."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def GetSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = await self._done(context, lambda: rest.get_session(self._store, request.session_id))
        return _message(sessions_pb2.SessionDetails, found)

    async def GetUserSessions(self, request: Any, context: Any) -> Any:  # noqa: N802
        asked = request.filter
        moments = [
            getattr(asked, name).ToDatetime(UTC) if asked.HasField(name) else None
            for name in ("start_time", "end_time")
        ]
        found = await self._done(
            context,
            lambda: rest.user_sessions(
                self._store, request.user_id, request.page_size, request.page_token, [*asked.status], *moments
            ),
        )
        return _message(sessions_pb2.UserSessionDetails, found)

    async def RevokeSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        done = await self._done(context, lambda: rest.revoke_session(self._store, request.session_id))
        return _message(sessions_pb2.RevokeSessionResponse, done)

    async def RevokeAllUserSessions(self, request: Any, context: Any) -> Any:  # noqa: N802
        done = await self._done(context, lambda: rest.revoke_all(self._store, request.user_id))
        return _message(sessions_pb2.RevokeAllUserSessionsResponse, done)

    async def _done(self, context: Any, act: Callable[[], rest.Message]) -> rest.Message:
        try:
            rest.check_bearer(self._store, [v for name, v in context.invocation_metadata() if name == "authorization"])
            return act()
        except Refused as refused:
            refuse: Callable[..., Awaitable[None]] = context.abort
            await refuse(getattr(grpc.StatusCode, refused.code), str(refused))
            raise


async def listen(store: Store) -> tuple[Any, int]:
    """Starts the service on a port of its own, without TLS. The server must be kept, or gRPC ends it."""
    server = grpc.aio.server()
    sessions_pb2_grpc.add_SessionServiceServicer_to_server(Sessions(store), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


def _message(kind: Any, members: rest.Message) -> Any:
    return ParseDict(_plain(members), kind())


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {name: _plain(each) for name, each in value.items() if each is not None}
        case list():
            return [_plain(each) for each in value]
        case datetime():
            moment = Timestamp()
            moment.FromDatetime(value)
            return moment.ToJsonString()
    return value
