"""The administrator who sends a request: the guard of everything under /admin."""

from __future__ import annotations

from ..errors import (
    AccessDenied,
    CrossSite,
    InsufficientUserAuthentication,
    InvalidRequest,
    InvalidToken,
    TemporarilyUnavailable,
)
from ..http.request import Request
from ..keyturn import Keyturn
from ..sessions.rows import SessionRow
from .credentials import access_token
from .freshness import require_fresh

ROLE = "admin"

READING = (InvalidRequest, InvalidToken, AccessDenied, InsufficientUserAuthentication, TemporarilyUnavailable)
"""The refusals of each endpoint for administrators."""

CHANGING = (*READING, CrossSite)
"""The refusals of each endpoint by which administrators change something."""


async def administrator(keyturn: Keyturn, request: Request, *, changes: bool = False) -> SessionRow:
    """The live session of the administrator who sends this request, with a fresh sign-in.

    The role comes from the session's row, and never from the token: any holder of the HS256 key can sign any role. A
    change of the role is copied to the rows in its own transaction, so it holds from the next request on.

    Args:
        keyturn: the parts of the process.
        request: the request.
        changes: whether the request changes something. Then cookies count only from a page of a trusted origin.

    Raises:
        InvalidToken, NoToken, CrossSite, InvalidRequest, TemporarilyUnavailable: as `access_token`.
        AccessDenied: the user is no administrator.
        InsufficientUserAuthentication: the user signed in longer ago than the policy allows.
    """
    session = await keyturn.reading.authorise(await access_token(keyturn, request, changes=changes))
    request.is_about(session.id, session.user_id, session.client_id)
    if session.role != ROLE:
        raise AccessDenied("no administrator")
    require_fresh(keyturn, session)
    return session
