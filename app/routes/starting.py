"""The part of a request and its answer that all sign-ins share, by a password or by an issuer's token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field
from pydantic_core import to_json

from ..errors import InvalidRequest, InvalidScope
from ..http.answers import Answer, Fields, of_json
from ..http.request import Request
from ..keyturn import Keyturn
from ..sessions.answers import Tokens
from ..settings_values import scopes_in
from ..tokens.cookies import Cookies, Mode
from .devices import Device
from .models import DeviceId, RequestBody
from .presented_cookies import fields_to_set
from .session_answers import DeviceName


class SignIn(RequestBody):
    """Where the tokens of a new session shall travel, and what the client says about itself."""

    mode: Annotated[
        Mode | None,
        Field(
            description="`bearer`: both tokens in the answer. `cookie`: both in cookies. `split`: the access token in "
            "the answer, the refresh token in a cookie. Unset: `bearer`, if no operator chose another."
        ),
    ] = None
    remember: Annotated[
        bool | None,
        Field(description="Whether cookies outlive the browser session. Unset: the service's default."),
    ] = None
    device_id: Annotated[
        DeviceId | None,
        Field(
            description="The client's own id of its device: chosen at random once, and kept. A session of the same "
            "device is replaced. Unset: in the modes with cookies, the device cookie."
        ),
    ] = None
    device_name: Annotated[DeviceName | None, Field(description="The name of the device, for its user.")] = None
    scope: Annotated[
        str | None,
        Field(
            max_length=1024,
            description="The scopes to grant, separated by blanks (RFC 6749 section 3.3), of those that the service "
            "allows. Unset: all of these.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The form in which a sign-in wants its tokens, checked before any credential is."""

    cookies: Cookies
    mode: Mode
    remembered: bool
    scope: frozenset[str] | None
    device_id: str | None

    @classmethod
    def of(cls, keyturn: Keyturn, request: Request, body: SignIn) -> Self:
        """The wishes of a request, with the policy's values where it has none.

        Raises:
            InvalidRequest: the mode needs cookies, and this service sets none.
            InvalidScope: the scope is malformed.
            CrossSite: the mode needs cookies, and a page of another site may have sent the request.
        """
        policy = keyturn.policies.in_force
        mode = body.mode or policy.mode
        remembered = policy.remember if body.remember is None else body.remember
        scope = _scopes_asked_for(body.scope)
        if mode != "bearer":
            if not keyturn.cookies.enabled:
                raise InvalidRequest("cookies are off", description="mode: this service sets no cookies.")
            # Otherwise another site's page could sign a browser in as somebody else (login CSRF).
            request.require_own_site()
        return cls(keyturn.cookies, mode, remembered, scope, body.device_id)

    def device(self, request: Request) -> Device:
        """The device of the request."""
        return Device.of(self.cookies, request, None if self.mode == "bearer" else self.mode, self.device_id)

    def answer(
        self, request: Request, tokens: Tokens, device: Device, more: Fields = (), device_token: str | None = None
    ) -> Answer:
        """The answer with the tokens of the new session, and with `more` fields. Notes the session for the log."""
        request.session_id = tokens.session_id
        fields = fields_to_set(self.cookies, self.mode, tokens, remembered=self.remembered)
        fields += device.fields_to_set(remembered=self.remembered)
        body = tokens.body(self.mode)
        if device_token is not None:
            body["device_token"] = device_token
        return of_json(to_json(body), [*fields, *more])


def _scopes_asked_for(scope: str | None) -> frozenset[str] | None:
    """The scopes of a request. An empty text counts as none at all (RFC 6749 section 3.2).

    Raises:
        InvalidScope: the text is malformed.
    """
    try:
        return scopes_in(scope) if scope else None
    except ValueError:
        raise InvalidScope("malformed") from None
