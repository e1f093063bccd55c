"""/admin/policies: lifetimes and bounds of sign-ins, read and changed by administrators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypeAliasType

from ..errors import InvalidRequest, NotFound
from ..http.answers import Answer, of_model
from ..http.documentation import word
from ..http.endpoints import Endpoint
from ..http.examples import like
from ..http.request import Request
from ..keyturn import Keyturn
from ..policies.members import SETTINGS, value_of
from .administration import CHANGING, READING, administrator
from .models import RequestBody

_EXAMPLE = {"access_lifetime": 900, "session_limit": 10}
_Whole = Annotated[int, Field(ge=0, le=10**9)]


class PolicyChange(RequestBody):
    """The whole row of a policy. A member that is absent or null has the value of the settings."""

    model_config = like(**_EXAMPLE)

    access_lifetime: Annotated[_Whole | None, Field(description="Seconds an access token lives.")] = None
    access_jitter: Annotated[_Whole | None, Field(description="Seconds by which it may live shorter.")] = None
    idle_lifetime: Annotated[_Whole | None, Field(description="Seconds a session may lie idle.")] = None
    absolute_lifetime: Annotated[_Whole | None, Field(description="Seconds a session lives at most.")] = None
    retry_window: Annotated[
        _Whole | None, Field(description="Seconds in which a refresh token that was replaced gets the same answer.")
    ] = None
    session_limit: Annotated[_Whole | None, Field(description="Live sessions of a user.")] = None
    password_length: Annotated[_Whole | None, Field(description="Characters that a new password must have.")] = None
    reauthentication_age: Annotated[
        _Whole | None, Field(description="Seconds after which administration asks for the password again.")
    ] = None
    mode: Annotated[
        Literal["bearer", "cookie", "split"] | None, Field(description="Mode of a sign-in that names none.")
    ] = None
    remember: Annotated[bool | None, Field(description="Whether cookies outlive the browser session.")] = None
    scopes: Annotated[
        str | None, Field(max_length=256, description="Scopes, separated by blanks, that a sign-in may ask for.")
    ] = None


_Seconds = Annotated[int | SkipJsonSchema[None], Field(description="Whole seconds.")]


class PolicyMembers(BaseModel):
    """Values of a policy. A member is absent where there is no value."""

    access_lifetime: _Seconds = None
    access_jitter: _Seconds = None
    idle_lifetime: _Seconds = None
    absolute_lifetime: _Seconds = None
    retry_window: _Seconds = None
    session_limit: Annotated[int | SkipJsonSchema[None], Field(description="Absent in force: any number.")] = None
    password_length: Annotated[int | SkipJsonSchema[None], Field(description="Code points of a new password.")] = None
    reauthentication_age: _Seconds = None
    mode: Annotated[
        str | SkipJsonSchema[None], word("Mode of a sign-in that names none.", "bearer", "cookie", "split")
    ] = None
    remember: bool | SkipJsonSchema[None] = None
    scopes: str | SkipJsonSchema[None] = None


PolicySources = TypeAliasType(
    "PolicySources",
    dict[str, Annotated[str, word("Where a value in force comes from.", "policy", "settings", "default")]],
)
"""For each member of a policy, where its value comes from."""


class PolicyAnswer(BaseModel):
    """The policy of a scope."""

    scope: Annotated[str, Field(examples=["global"])]
    changed_at: Annotated[datetime | SkipJsonSchema[None], Field(description="Absent: never.")] = None
    values: Annotated[
        PolicyMembers,
        Field(description="The row: what this policy sets.", examples=[_EXAMPLE]),
    ]
    in_force: PolicyMembers
    most: Annotated[
        PolicyMembers,
        Field(description="The values of the settings: the ceiling, and for `password_length` the floor."),
    ]
    sources: Annotated[
        PolicySources,
        Field(description="For each member, where its value in force comes from."),
    ]
    cut: Annotated[
        list[str], Field(description="Members of the row that are laxer than the settings, and so are not in force.")
    ]


class PoliciesAnswer(BaseModel):
    """The policies of all scopes."""

    items: list[PolicyAnswer]


async def list_policies(keyturn: Keyturn, request: Request) -> Answer:
    """List the policies: what each sets, what is in force, and where each value comes from."""
    await administrator(keyturn, request)
    items = [PolicyAnswer.model_validate(policy.members()) for policy in await keyturn.policies.rows()]
    return of_model(PoliciesAnswer(items=items), exclude_none=True)


async def set_policy(keyturn: Keyturn, request: Request) -> Answer:
    """Set the policy of a scope, whole. It is in force on every instance within a second.

    A policy may be stricter than the settings, and never laxer. A shorter lifetime holds at once, also for live
    sessions. A longer one never lengthens what a session was promised.
    """
    session = await administrator(keyturn, request, changes=True)
    body = request.content(PolicyChange)
    values = {name: _value(name, getattr(body, name)) for name in SETTINGS}
    by = request.by("administrator", session.user_id)
    policy = await keyturn.policy_changes.change(request.identifiers["scope"], values, by=by)
    return of_model(PolicyAnswer.model_validate(policy.members()), exclude_none=True)


def _value(name: str, given: object) -> Any:
    try:
        return None if given is None else value_of(name, given)
    except ValueError as e:
        raise InvalidRequest("form of a member", description=f"{name}: {e}.") from None


ENDPOINTS = (
    Endpoint(
        "GET",
        "/admin/policies",
        list_policies,
        tag="admin",
        credentials="bearer",
        model=PoliciesAnswer,
        refusals=READING,
    ),
    Endpoint(
        "PUT",
        "/admin/policies/{scope}",
        set_policy,
        tag="admin",
        credentials="bearer",
        body=PolicyChange,
        model=PolicyAnswer,
        refusals=(*CHANGING, NotFound),
    ),
)
