"""/auth/me: the session and the user of an access token."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel

from ..errors import InvalidRequest, InvalidToken, TemporarilyUnavailable
from ..http.answers import Answer, of_model
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from .credentials import access_token
from .models import UserAnswer


class MySession(BaseModel):
    """The session of the access token."""

    id: UUID
    client_id: str
    created_at: datetime
    rotated_at: datetime
    idle_expires_at: datetime
    absolute_expires_at: datetime


class MeAnswer(BaseModel):
    """The user and this session, as the database has them."""

    user: UserAnswer
    session: MySession


async def me(keyturn: Keyturn, request: Request) -> Answer:
    """Get the user and the session of an access token."""
    session = await keyturn.reading.authorise(await access_token(keyturn, request))
    request.is_about(session.id, session.user_id, session.client_id)
    user = await keyturn.users.find(session.user_id)
    return of_model(
        MeAnswer(
            user=UserAnswer(id=user.id, email=user.email, role=user.role, created_at=user.created_at),
            session=MySession(
                id=session.id,
                client_id=session.client_id,
                created_at=session.created_at,
                rotated_at=session.rotated_at,
                idle_expires_at=session.idle_expires_at,
                absolute_expires_at=session.absolute_expires_at,
            ),
        ),
        exclude_none=True,
    )


ENDPOINTS = (
    Endpoint(
        "GET",
        "/auth/me",
        me,
        tag="auth",
        credentials="bearer",
        model=MeAnswer,
        refusals=(InvalidRequest, InvalidToken, TemporarilyUnavailable),
    ),
)
