"""/admin/federation: the issuers whose tokens are exchanged, read and changed by administrators.

No answer has a secret: it says only whether there is one.
"""

from __future__ import annotations

from ..errors import Conflict, NotFound
from ..federation.issuer import issuer_of, secrets_of
from ..federation.issuer_rows import Listed
from ..http.answers import NO_CONTENT, Answer, of_model
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn
from .administration import CHANGING, READING, administrator
from .issuer_models import IssuerAnswer, IssuerChange, IssuersAnswer, KnownIssuer, changes_in


async def list_issuers(keyturn: Keyturn, request: Request) -> Answer:
    """List the issuers, in force or not, without their secrets."""
    await administrator(keyturn, request)
    items = [_shown(each) for each in await keyturn.issuers.rows()]
    return of_model(IssuersAnswer(items=items), exclude_none=True)


async def find_issuer(keyturn: Keyturn, request: Request) -> Answer:
    """An issuer, without its secrets."""
    await administrator(keyturn, request)
    return of_model(_shown(await keyturn.issuers.find(request.identifiers["name"])), exclude_none=True)


async def put_issuer(keyturn: Keyturn, request: Request) -> Answer:
    """Add an issuer, or replace its members: in force on every instance within a second.

    A member that is absent or null has its default. A secret that is absent stays. The issuer is asked first: with a
    discovery document of another issuer the change is refused. While its keys can't be had, the change is made, and
    the answer has a `warning`. An issuer of the file is changed in the file alone.

    `private_addresses` and `ca_file` say to which addresses this machine connects, and whom it believes there. Only
    the command `keyturn federation add` and the file set them. Here they stay as they are. So do the URLs of an issuer
    that may have private addresses.
    """
    session = await administrator(keyturn, request, changes=True)
    members, secrets = changes_in(request.content(IssuerChange))
    name, by = request.identifiers["name"], request.by("administrator", session.user_id)
    put = await keyturn.issuer_changes.put(name, issuer_of(members), secrets_of(secrets), by=by)
    return of_model(_shown(await keyturn.issuers.find(name), put.not_examined or None), exclude_none=True)


async def remove_issuer(keyturn: Keyturn, request: Request) -> Answer:
    """Remove an issuer: within a second no instance takes its tokens. Sessions that began by them go on."""
    session = await administrator(keyturn, request, changes=True)
    by = request.by("administrator", session.user_id)
    await keyturn.issuer_changes.remove(request.identifiers["name"], by=by)
    return NO_CONTENT


def _shown(issuer: Listed, warning: str | None = None) -> KnownIssuer:
    return IssuerAnswer.model_validate({**issuer.members(), "warning": warning})


ENDPOINTS = (
    Endpoint(
        "GET",
        "/admin/federation",
        list_issuers,
        tag="admin",
        credentials="bearer",
        model=IssuersAnswer,
        refusals=READING,
    ),
    Endpoint(
        "GET",
        "/admin/federation/{name}",
        find_issuer,
        tag="admin",
        credentials="bearer",
        model=IssuerAnswer,
        refusals=(*READING, NotFound),
    ),
    Endpoint(
        "PUT",
        "/admin/federation/{name}",
        put_issuer,
        tag="admin",
        credentials="bearer",
        body=IssuerChange,
        model=IssuerAnswer,
        refusals=(*CHANGING, Conflict),
    ),
    Endpoint(
        "DELETE",
        "/admin/federation/{name}",
        remove_issuer,
        tag="admin",
        credentials="bearer",
        status=204,
        response_description="The issuer is removed.",
        refusals=(*CHANGING, NotFound, Conflict),
    ),
)
