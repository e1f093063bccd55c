"""/federation: issuers say that a session or user was logged out there. They prove it by signatures alone.

No cookie and no bearer token counts here, so a browser that is led to these paths has no say.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field
from typing_extensions import TypeAliasType

from ..errors import InvalidRequest, NotFound, TemporarilyUnavailable
from ..federation.webhook_signatures import HEADERS
from ..http.answers import Answer, of_json
from ..http.endpoints import Endpoint, HeaderField
from ..http.request import Request
from ..keyturn import Keyturn
from ..metrics import UPSTREAM_LOGOUTS
from .models import EmptyAnswer

_LONGEST = 16_384  # characters of a logout token


class UpstreamLogoutNotice(BaseModel):
    """A form with a logout token. Its other fields are ignored (Back-Channel Logout 1.0 section 2.5)."""

    logout_token: Annotated[
        str,
        Field(max_length=_LONGEST, repr=False, description="JWT after OpenID Connect Back-Channel Logout 1.0."),
    ]


UpstreamEventData = TypeAliasType("UpstreamEventData", dict[str, object])
"""What an event is about."""


class UpstreamEvent(BaseModel):
    """An event in the form of Scalekit's. Members that are not named here are ignored."""

    type: Annotated[str, Field(description="`user.logout`; any other event is ignored.", examples=["user.logout"])]
    data: Annotated[
        UpstreamEventData,
        Field(
            description="`user_session.session_id` names the session at Scalekit.",
            examples=[{"user_session": {"session_id": "ses_123456789"}}],
        ),
    ]


async def upstream_logout(keyturn: Keyturn, request: Request) -> Answer:
    """Take a logout token of an issuer (OpenID Connect Back-Channel Logout 1.0), and end the sessions that it names.

    After the answer, no access token of those sessions is accepted any more. A token counts once. If the answer is 503,
    the issuer may send the same token again.
    """
    form = request.json
    token = form.get("logout_token") if isinstance(form, dict) else None
    if not token:
        raise InvalidRequest("no logout token", description="logout_token: is missing.")
    name = request.identifiers["name"]
    with UPSTREAM_LOGOUTS.outcome("done"):
        ended = await keyturn.upstream_logout.by_logout_token(name, token, by=request.by("upstream"))
    request.note(issuer=name, ended=ended)
    return of_json(b"{}")


async def upstream_webhook(keyturn: Keyturn, request: Request) -> Answer:
    """Take a webhook of Scalekit's, and end the sessions of a user session that was logged out there.

    The signature is the one of Standard Webhooks. A webhook counts once: a repeated one is answered alike, and changes
    nothing. So is an event of another type.
    """
    fields = {}
    for name in HEADERS:
        value = request.fields.get(name.encode())
        if value is None or request.has_several(name.encode()):
            raise InvalidRequest("webhook: header fields", description=f"There must be one {name} header.")
        fields[name] = value.decode("latin-1")
    name = request.identifiers["name"]
    with UPSTREAM_LOGOUTS.outcome("done"):
        effect, ended = await keyturn.upstream_logout.by_webhook(
            name, fields, request.raw, request.json, by=request.by("upstream")
        )
    request.note(issuer=name, webhook=effect, ended=ended)
    return of_json(b"{}", status=201)


ENDPOINTS = (
    Endpoint(
        "POST",
        "/federation/{name}/logout",
        upstream_logout,
        tag="federation",
        body=UpstreamLogoutNotice,
        response_description="The sessions are over.",
        refusals=(InvalidRequest, NotFound, TemporarilyUnavailable),
        model=EmptyAnswer,
    ),
    Endpoint(
        "POST",
        "/federation/{name}/webhook",
        upstream_webhook,
        tag="federation",
        body=UpstreamEvent,
        status=201,
        model=EmptyAnswer,
        response_description="The event was taken, or is none that counts.",
        fields=tuple(HeaderField(name, f"`{name}` of Standard Webhooks.") for name in HEADERS),
        refusals=(InvalidRequest, NotFound, TemporarilyUnavailable),
    ),
)
