"""A request, as every endpoint sees it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import count
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import parse_qsl
from uuid import UUID

from pydantic import BaseModel, ValidationError
from starlette.types import Scope

from .. import log
from ..actors import Actor, Kind
from ..errors import CrossSite, InvalidRequest, NotFound, Refusal
from .answers import Answer, Fields, render
from .bodies import ABSENT, not_as_modelled
from .idempotency_keys import FIELD, key_in

if TYPE_CHECKING:
    from .origins import Origins

KEY = "keyturn.request"
"""The only member that Keyturn adds to the ASGI scope."""

# Keep the id that a client gives, so that both logs name the request alike. But the log must not get an id that looks
# like a token.
_REQUEST_ID = re.compile(rb"(?!.*(?:kt[rd]_|eyJ))[A-Za-z0-9._-]{1,64}")
# An id that Keyturn makes is unique and no secret: a random part for each process, and a count of requests.
_PROCESS = token_hex(10)
_requests = count(1)

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)

_MAX_REMEMBERED = 256  # bytes of a query whose parameters are remembered: strangers must not fill the memory
_MAX_USER_AGENT = 256  # characters: the most that the column takes

_Model = TypeVar("_Model", bound=BaseModel)


class Request:
    """One HTTP request, and the notes for its line in the log.

    `KeyturnHttpProtocol` makes the object, as a `FastRequest` if it can. Under another protocol, the edge makes it. The
    edge fills in head and body before any endpoint sees the request.
    """

    __slots__ = (
        "client",
        "client_id",
        "fields",
        "headers",
        "id",
        "identifiers",
        "json",
        "malformed",
        "method",
        "notes",
        "origins",
        "path",
        "query",
        "raw",
        "refusal",
        "route",
        "session_id",
        "user_id",
        "wire",
    )

    method: str
    path: str
    """The decoded path, without the prefix under which a proxy publishes the service."""
    query: bytes
    headers: list[tuple[bytes, bytes]]
    """The header fields in their order, names in lower case."""
    fields: dict[bytes, bytes]
    """The last value of each header field."""
    identifiers: Mapping[str, str]
    """The parts of the path that stand in braces in the endpoint's."""
    client: str | None
    """The client's address as a trusted proxy names it, or else the address of the connection."""
    id: str
    origins: Origins
    """The trusted origins."""
    json: object
    """The JSON value in the body, or the fields of a form as an object; `ABSENT` if there is no body."""
    raw: bytes
    """The body as it came, for signatures over it. Only below `OF_STANDARDS`; elsewhere it is empty."""
    notes: dict[str, Any] | None
    """Further members for the line in the log, which are redacted there."""
    route: str
    """The path of the endpoint, with its identifiers in braces, for the trace. Empty if the request reached none."""
    session_id: UUID | str | None
    """The session that the request was about, for the log."""
    user_id: UUID | None
    """The user of that session, or who signs in, for the line of a refusal in the log."""
    client_id: str | None
    """The client of that session, likewise."""
    refusal: Refusal | None
    """The refusal that the request was answered with, for the log."""
    malformed: Refusal | None
    """The refusal of a request that the protocol could not read."""
    wire: Any
    """uvicorn's object for this request, which `take_body` and `respond` use instead of ASGI. None: they do nothing."""

    def __init__(self, malformed: Refusal | None = None) -> None:
        self.malformed, self.json, self.raw, self.route = malformed, ABSENT, b"", ""
        self.wire = self.notes = self.session_id = self.user_id = self.client_id = self.refusal = None

    def take_body(self) -> bytes | None:
        """The whole body, taken from `wire`. None while a part of the body is still to come, or without `wire`."""
        return None

    def respond(self, status: int, fields: Fields, body: bytes) -> bool:  # noqa: ARG002  # a subclass uses them
        """Sends a whole answer by `wire`. Returns False, with nothing sent, if that is not possible."""
        return False

    async def has_gone(self) -> bool:
        """Whether the client ended the connection, so that no answer can reach it. False if `wire` can't tell."""
        return False

    @staticmethod
    def of(asgi_scope: Scope) -> Request:
        """The request of an ASGI scope. If the server's protocol has made none, this function makes one."""
        request = asgi_scope.get(KEY)
        if request is None:
            request = asgi_scope[KEY] = Request()
        return cast("Request", request)

    def read_head(self, asgi_scope: Scope) -> None:
        """Takes over the head from the ASGI scope. The client is the socket's, until `ClientAddresses` is asked."""
        headers = self.headers = asgi_scope["headers"]
        fields = self.fields = dict(headers)
        self.method = asgi_scope["method"]
        self.read_target(asgi_scope)
        client = asgi_scope.get("client")
        self.client = client[0] if client else None
        given = fields.get(b"x-request-id")
        self.id = given.decode() if given and _REQUEST_ID.fullmatch(given) else f"{_PROCESS}{next(_requests):012x}"

    def read_target(self, asgi_scope: Scope) -> None:
        """Takes over path and query from the ASGI scope."""
        prefix = asgi_scope.get("root_path")
        self.path = asgi_scope["path"][len(prefix) :] if prefix else asgi_scope["path"]
        self.query = asgi_scope["query_string"]

    def is_about(self, session_id: UUID, user_id: UUID, client_id: str) -> None:
        """Notes session, user and client for the log: also a later refusal of this request is about them."""
        self.session_id, self.user_id, self.client_id = session_id, user_id, client_id

    def note(self, **members: Any) -> None:
        """Adds members to the line in the log."""
        self.notes = (self.notes or {}) | members

    def by(self, kind: Kind = "anonymous", user_id: UUID | None = None) -> Actor:
        """The actor of this request.

        Another server may name any text as the client's address. So the address is redacted and cut as in the log:
        Postgres would refuse an event with a longer one, and the change with the event.
        """
        address = log.shown_client(self.client) if self.client else None
        return Actor(kind, str(user_id) if user_id else None, address, self.id)

    def user_agent(self) -> str | None:
        """The User-Agent field (RFC 9110 section 10.1.5) for the session's row: 256 characters at most, redacted.

        None if the request has no such field.
        """
        value = self.fields.get(b"user-agent")
        return None if value is None else log.redact_tokens(value.decode("latin-1"))[:_MAX_USER_AGENT]

    def bearer(self) -> str | None:
        """The bearer token (RFC 6750 section 2.1), or None if there is none. No other code looks for a bearer token.

        A credential of another scheme counts as none. Otherwise a proxy's own credential would keep the client's
        refresh token from logging out.

        Raises:
            InvalidRequest: there are several Authorization fields.
        """
        value = self.fields.get(b"authorization")
        if value is None:
            return None
        if self.has_several(b"authorization"):
            raise InvalidRequest("several Authorization fields", description="There must be one Authorization header.")
        scheme, _, token = value.decode("latin-1").partition(" ")
        return token.strip(" \t") if scheme.lower() == "bearer" else None

    def has_several(self, name: bytes) -> bool:
        """Whether there are several header fields of this name."""
        return len(self.fields) != len(self.headers) and sum(each == name for each, _ in self.headers) > 1

    def idempotency_key(self) -> str | None:
        """The key by which a client proves that a request is its own retry, or None if there is none.

        Raises:
            InvalidRequest: the field is malformed, or there are several.
        """
        value = self.fields.get(b"idempotency-key")
        if value is not None and self.has_several(b"idempotency-key"):
            raise InvalidRequest(f"several {FIELD} fields", description=f"There must be one {FIELD} header.")
        return None if value is None else key_in(value)

    def require_own_site(self) -> None:
        """Checks that a page of a trusted origin sent the request. Each change by a cookie needs it, against CSRF.

        Raises:
            CrossSite: a page of another site may have sent the request, or the browser does not tell.
        """
        if not self.origins.is_own(self.headers):
            raise CrossSite("neither an allowed Origin nor Sec-Fetch-Site: same-origin")

    def refused(self, refusal: Refusal, fields: Fields) -> Answer:
        """The answer that a refusal gives, with further header fields. The log names the refusal."""
        self.refusal = refusal
        status, own, body = render(refusal)
        return status, [*own, *fields], body

    def cookies(self) -> dict[str, list[str]]:
        """The values of each cookie, in their order (RFC 6265 section 5.4). Several of one name differ in their path.

        HTTP/2 allows several Cookie fields (RFC 9113 section 8.2.3), and a proxy may pass them on.
        """
        header = self.fields.get(b"cookie")
        if header is None:
            return {}
        if len(self.fields) != len(self.headers):
            header = b";".join(value for name, value in self.headers if name == b"cookie")
        cookies: dict[str, list[str]] = {}
        for pair in header.decode("latin-1").split(";"):
            name, equals, value = pair.partition("=")
            if equals:
                cookies.setdefault(name.strip(" \t"), []).append(value.strip(" \t"))
        return cookies

    def parameters(self) -> Mapping[str, tuple[str, ...]]:
        """The values of each query parameter, in their order."""
        if not self.query:
            return {}
        parse = _parameters if len(self.query) <= _MAX_REMEMBERED else _parameters.__wrapped__
        return parse(self.query)

    def parameter(self, name: str) -> str | None:
        """The value of a query parameter that may stand once. None if it is absent.

        Raises:
            InvalidRequest: it stands several times, or has a character that no value needs.
        """
        values = self.parameters().get(name, ())
        if len(values) > 1 or (values and not values[0].isprintable()):
            raise InvalidRequest(f"{name} of the query", description=f"{name}: must stand once and be printable.")
        return values[0] if values else None

    def number(self, name: str, *, default: int, most: int) -> int:
        """A whole number from 1 to `most` in the query.

        Raises:
            InvalidRequest: the parameter is something else.
        """
        value = self.parameter(name)
        if value is None:
            return default
        if not (value.isascii() and value.isdigit() and len(value) <= len(str(most)) and 1 <= int(value) <= most):
            raise InvalidRequest(f"{name} of the query", description=f"{name}: must be a number from 1 to {most}.")
        return int(value)

    def identifier(self, name: str) -> UUID:
        """The id in this part of the path.

        Raises:
            NotFound: the part has not the form of an id, and so nothing has it.
        """
        text = self.identifiers[name]
        if not _UUID.fullmatch(text):
            raise NotFound("not the form of an id")
        return UUID(text)

    def content(self, model: type[_Model]) -> _Model:
        """The JSON body as its model.

        Raises:
            InvalidRequest: the body is missing or does not fit the model.
        """
        try:
            # FastAPI sets the same flag. The name of the error's type depends on the flag, and the log has the name.
            content: _Model = model.__pydantic_validator__.validate_python(self.json, from_attributes=True)
        except ValidationError as error:
            refusal = not_as_modelled(model, self.json, error)
        else:
            return content
        raise refusal  # not inside `except`: the error holds the body, and would become the context of the refusal

    def content_or_default(self, model: type[_Model]) -> _Model:
        """The JSON body as its model, or the model's defaults if there is no body.

        Java clients send ``null`` for an absent body. So ``null`` counts as absent.

        Raises:
            InvalidRequest: the body does not fit the model.
        """
        return model() if self.json is ABSENT or self.json is None else self.content(model)


@lru_cache(maxsize=256)  # a proxy asks always the same
def _parameters(query: bytes) -> Mapping[str, tuple[str, ...]]:
    parameters: dict[str, list[str]] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        parameters.setdefault(name, []).append(value)
    return {name: tuple(values) for name, values in parameters.items()}
