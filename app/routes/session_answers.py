"""Sessions as answers show them, to their user and to administrators."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, cast, get_args
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from ..errors import Reason
from ..http.documentation import word
from ..http.endpoints import QueryParameter
from ..http.request import Request
from ..keyturn import Keyturn
from ..sessions import devices
from ..sessions.filters import Status
from ..sessions.rows import SessionRow
from . import filters


class DeviceAnswer(BaseModel):
    """The device of a session. The client chooses all of it, so it is a hint and no proof."""

    name: Annotated[
        str | SkipJsonSchema[None], Field(description="The name that user or client gave it.", examples=["Ada's phone"])
    ] = None
    browser: Annotated[str | SkipJsonSchema[None], Field(examples=["Firefox 128"])] = None
    system: Annotated[str | SkipJsonSchema[None], Field(examples=["Windows 10"])] = None
    kind: Annotated[str, word("The kind.", *get_args(devices.Kind))] | SkipJsonSchema[None] = None


class UpstreamAnswer(BaseModel):
    """The sign-in at an issuer that a session came from."""

    issuer: Annotated[str, Field(description="The name of the issuer in this service.", examples=["acme"])]
    organization: Annotated[str | SkipJsonSchema[None], Field(description="The organization of the sign-in.")] = None
    session_id: Annotated[str | SkipJsonSchema[None], Field(description="The issuer's own session (`sid`).")] = None


class SessionAnswer(BaseModel):
    """A session. A member that has no value is absent."""

    id: UUID
    status: Annotated[str, word("Whether the session lives, or why it is over.", "live", *get_args(Reason))]
    current: Annotated[bool, Field(description="Whether the access token of this request is the session's.")]
    client_id: str
    created_at: datetime
    last_used_at: Annotated[datetime, Field(description="The last refresh, or the sign-in.")]
    idle_expires_at: datetime
    absolute_expires_at: datetime
    ended_at: datetime | SkipJsonSchema[None] = None
    end_reason: Annotated[str, word("Why it is over.", *get_args(Reason))] | SkipJsonSchema[None] = None
    device: DeviceAnswer
    address: Annotated[str | SkipJsonSchema[None], Field(description="The client's address.")] = None
    amr: Annotated[list[str], Field(description="How the user signed in (RFC 8176).", examples=[["pwd"]])]
    authenticated_at: Annotated[
        datetime | SkipJsonSchema[None],
        Field(description="When the user last proved to be the user, by the password or as the issuer says."),
    ] = None
    scope: str | SkipJsonSchema[None] = None
    upstream: Annotated[
        UpstreamAnswer | SkipJsonSchema[None], Field(description="Absent where the session began by a password.")
    ] = None


async def members(keyturn: Keyturn, rows: Sequence[SessionRow], current: UUID) -> list[dict[str, Any]]:
    """The members of `SessionAnswer` for each session. `current` is the session of the request.

    Raises:
        TemporarilyUnavailable: the database is away.
    """
    found = await devices.described_each({row.user_agent for row in rows})
    upstream = await keyturn.upstream_sessions.of([row.id for row in rows])
    return [_members(row, current, found[row.user_agent], upstream.get(row.id)) for row in rows]


def _members(row: SessionRow, current: UUID, device: devices.Device, upstream: Any) -> dict[str, Any]:
    over = row.over()
    return {
        "id": row.id,
        "status": over or "live",
        "current": row.id == current,
        "client_id": row.client_id,
        "created_at": row.created_at,
        "last_used_at": row.rotated_at,
        "idle_expires_at": row.idle_expires_at,
        "absolute_expires_at": row.absolute_expires_at,
        "ended_at": row.over_since(),
        "end_reason": over,
        "device": DeviceAnswer(name=row.device_name, browser=device.browser, system=device.system, kind=device.kind),
        "address": row.address,
        "amr": (row.amr or "").split(),
        "authenticated_at": row.auth_time,
        "scope": row.scope,
        "upstream": None if upstream is None else _upstream(upstream),
    }


def _upstream(row: Any) -> UpstreamAnswer:
    return UpstreamAnswer(issuer=row.issuer_name, organization=row.organization, session_id=row.upstream_id)


STATUS = QueryParameter(
    "status",
    "Which sessions: those that live, those that are over, or all.",
    schema={"type": "string", "enum": list(get_args(Status)), "default": "live"},
)


def status_of(request: Request) -> Status:
    """The status that the query asks for.

    Raises:
        InvalidRequest: it is none of the three.
    """
    return cast("Status", filters.word(request, "status", get_args(Status)) or "live")


def _name(text: str) -> str:
    if not text.isprintable() or text.isspace():
        raise ValueError
    return text


DeviceName = Annotated[
    str,
    Field(min_length=1, max_length=100, description="1 to 100 printable characters.", examples=["Ada's phone"]),
    AfterValidator(_name),
]
"""The name of a device, as a request gives it."""
