"""/auth/exchange: a token of another issuer becomes a session here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..errors import (
    CrossSite,
    InvalidGrant,
    InvalidRequest,
    InvalidScope,
    SlowDown,
    TemporarilyUnavailable,
    UnacceptableToken,
)
from ..federation.exchange import caller_of
from ..federation.issuer import Kind
from ..http.answers import Answer, Fields
from ..http.endpoints import Endpoint, HeaderField
from ..http.idempotency_keys import PATTERN
from ..http.request import Request
from ..keyturn import Keyturn
from ..metrics import EXCHANGES
from .models import SET_COOKIES, TokenAnswer
from .starting import SignIn, Wanted
from .upstream_cookie import fields_of_id_token

SubjectToken = Annotated[
    str,
    Field(
        max_length=65_536,
        repr=False,
        description="The token of the issuer, a JWT. Its refresh tokens are refused: never send one.",
        examples=["header.claims.signature"],
    ),
]

SubjectTokenType = Literal[
    "jwt",
    "id_token",
    "access_token",
    "urn:ietf:params:oauth:token-type:jwt",
    "urn:ietf:params:oauth:token-type:id_token",
    "urn:ietf:params:oauth:token-type:access_token",
]
"""The types of RFC 8693 section 3 that are exchanged, and a short word for each."""

TYPE = Field(
    description="The kind of the token: another kind is then refused. `jwt`, or unset: any that the issuer's "
    "configuration accepts."
)

_KINDS: dict[str, Kind] = {"id_token": "id_token", "access_token": "access_token"}


class Exchange(SignIn):
    """The token of an issuer, where the tokens of this service shall travel, and what the client says about itself."""

    subject_token: SubjectToken
    subject_token_type: Annotated[SubjectTokenType | None, TYPE] = None
    id_token: Annotated[
        str | None,
        Field(
            max_length=65_536,
            repr=False,
            description="The ID token of the same sign-in. It adds what the token does not say: the user's address, "
            "when and how the user signed in. In the modes with cookies it then lives in a sealed cookie of its own, "
            "and tells the issuer at a logout whom to sign out.",
        ),
    ] = None


def kind_of(subject_token_type: SubjectTokenType | None) -> Kind | None:
    """The kind of token that a type names. None: any."""
    return None if subject_token_type is None else _KINDS.get(subject_token_type.rpartition(":")[2])


def require_issuer(keyturn: Keyturn) -> None:
    """Checks that some issuer is configured.

    Raises:
        InvalidRequest: none is, so this service exchanges nothing.
        TemporarilyUnavailable: this process does not know the issuers in force.
    """
    if not keyturn.issuers.in_force:
        raise InvalidRequest(
            "no issuer is configured",
            description="This service exchanges no tokens: its operator has configured no issuer.",
        )


async def exchange(keyturn: Keyturn, request: Request) -> Answer:
    """Start a session with a token of another issuer, in the place of e-mail address and password.

    An external token is exchanged once. A retry is safe: within the retry window, and until its tokens are used, the
    same client gets the same answer. Send the same `Idempotency-Key`, `device_id` and `User-Agent`. A 503 says nothing
    about the token.

    All else is as at login: a session of the same device is replaced, and the modes with cookies need an allowed
    `Origin`, or `Sec-Fetch-Site: same-origin`.
    """
    retry_key = request.idempotency_key()
    body = request.content(Exchange)
    require_issuer(keyturn)
    wanted = Wanted.of(keyturn, request, body)
    device, user_agent = wanted.device(request), request.user_agent()
    # A browser whose first answer was lost never learned the id that was made for it. So only a known id counts.
    known_device = None if device.new_cookie is not None else device.id
    with EXCHANGES.outcome("exchanged"):
        try:
            tokens = await keyturn.exchange.exchange(
                body.subject_token,
                kind_of(body.subject_token_type),
                caller=caller_of(keyturn.settings.client_id, retry_key, known_device, user_agent),
                by=request.by(),
                user_agent=user_agent,
                device_id=device.id,
                device_name=body.device_name,
                scope=wanted.scope,
                id_token=body.id_token,
            )
        except UnacceptableToken:
            await keyturn.limits.external_token_refused("exchange", request.client)
            raise
    kept: Fields = ()
    if wanted.mode != "bearer":
        kept = fields_of_id_token(keyturn, request, tokens, body.id_token, remembered=wanted.remembered)
    return wanted.answer(request, tokens, device, kept)


ENDPOINTS = (
    Endpoint(
        "POST",
        "/auth/exchange",
        exchange,
        tag="auth",
        body=Exchange,
        model=TokenAnswer,
        fields=(
            HeaderField(
                "Idempotency-Key",
                "A secret for this exchange alone, chosen at random and stored before the request: 16 to 255 printable "
                "ASCII characters, bare or as a quoted string (RFC 9651 section 3.3.3).",
                schema={"type": "string", "pattern": f"^(?:{PATTERN})$"},
            ),
        ),
        response_headers=SET_COOKIES,
        refusals=(InvalidRequest, InvalidScope, InvalidGrant, CrossSite, SlowDown, TemporarilyUnavailable),
    ),
)
