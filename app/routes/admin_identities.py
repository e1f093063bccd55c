"""/admin/users/{user_id}/identities: who a user is at other issuers. `keyturn users` has the twin of each act."""

from __future__ import annotations

from ..errors import Conflict, NotFound
from ..http.answers import NO_CONTENT, Answer
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from .administration import CHANGING, READING, administrator
from .identities import IdentitiesAnswer, answer_with


async def list_user_identities(keyturn: Keyturn, request: Request) -> Answer:
    """List the identities of a user at other issuers."""
    await administrator(keyturn, request)
    user = await keyturn.users.find(request.identifier("user_id"))
    return answer_with(await keyturn.identities.of_user(user.id))


async def unlink_user_identity(keyturn: Keyturn, request: Request) -> Answer:
    """Take an identity away from a user. The last way to sign in stays: disable or erase the user instead."""
    session = await administrator(keyturn, request, changes=True)
    user_id, identity_id = request.identifier("user_id"), request.identifier("identity_id")
    await keyturn.identities.unlink(user_id, identity_id, by=request.by("administrator", session.user_id))
    return NO_CONTENT


ENDPOINTS = (
    Endpoint(
        "GET",
        "/admin/users/{user_id}/identities",
        list_user_identities,
        tag="admin",
        credentials="bearer",
        model=IdentitiesAnswer,
        refusals=(*READING, NotFound),
    ),
    Endpoint(
        "DELETE",
        "/admin/users/{user_id}/identities/{identity_id}",
        unlink_user_identity,
        tag="admin",
        credentials="bearer",
        status=204,
        response_description="The identity is the user's no more.",
        refusals=(*CHANGING, NotFound, Conflict),
    ),
)
