"""The bodies of /admin/federation, made from the members of `Issuer`, so that they never differ from them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypeAliasType

from ..federation.issuer import OF_THE_MACHINE, Issuer, IssuerSecrets
from ..federation.issuer_members import shown
from ..http.documentation import word
from ..http.examples import like
from .models import RequestBody

_SECRET = Field(min_length=1, max_length=1024, json_schema_extra={"writeOnly": True}, repr=False)


IssuerNames = TypeAliasType("IssuerNames", dict[str, str])
"""Names of the issuer, and what each is called here."""

_EXAMPLE = {
    "preset": "scalekit",
    "issuer": "https://acme.scalekit.com",
    "client_id": "skc_123456789",
    "organizations": ["org_123456789"],
    "create_users": True,
}


def _in_body(name: str, field: FieldInfo) -> tuple[Any, Any]:
    """A member of a request's body. An array is a list. One that need not be there has no default, but may be null."""
    kind: Any = field.annotation
    if get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]  # made at run time
    of_names = get_origin(kind) is dict
    kind = Annotated[(kind, Field(), *field.metadata)]
    if of_names:  # a component of the document, whose name no generator has to invent
        kind = TypeAliasType(f"Issuer{name.title()}", kind)  # type: ignore[misc]  # made at run time
    if field.is_required():
        return Annotated[kind, Field(description=field.description)], ...
    more = f" Default: `{shown(field.default)}`." if shown(field.default) else ""
    if name in OF_THE_MACHINE:
        more = " Only a command or the file changes it: absent, or as it is."
    return Annotated[kind | None, Field(description=f"{field.description}{more}")], None


def _in_answer(kind: Any) -> Any:
    """The type of a member in an answer: later releases may add words, so that no enum stands in it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _in_answer(arguments[0])
    if origin is Literal:
        return str
    if origin is tuple:
        return list[_in_answer(arguments[0])]  # type: ignore[misc]  # made at run time
    if origin is dict:
        return IssuerNames
    if arguments:  # an optional one
        return next(_in_answer(each) for each in arguments if each is not type(None))
    return kind


_BODY: Mapping[str, Any] = {name: _in_body(name, field) for name, field in Issuer.model_fields.items()}
_SECRETS: Mapping[str, Any] = {
    name: (
        Annotated[str | None, _SECRET, Field(description=f"{field.description} Absent: it stays. Null: it goes.")],
        None,
    )
    for name, field in IssuerSecrets.model_fields.items()
}
_ABSENT: Any = SkipJsonSchema[None]  # type: ignore[misc]  # a class at run time
_ANSWER: Mapping[str, Any] = {
    name: (Annotated[_in_answer(field.annotation) | _ABSENT, Field(description=field.description)], None)
    for name, field in Issuer.model_fields.items()
}


class _LikeThis(RequestBody):
    model_config = like(**_EXAMPLE)


IssuerChange: type[RequestBody] = create_model(
    "IssuerChange",
    __base__=_LikeThis,
    __module__=__name__,
    __doc__="All members of an issuer, and the secrets to change. A member that is absent or null has its default.",
    **_BODY,
    **_SECRETS,
)


class KnownIssuer(BaseModel):
    """The members of each issuer in an answer."""

    model_config = like(
        name="acme",
        source="table",
        status="in_force",
        changed_at="2026-01-31T12:00:00Z",
        has_client_secret=True,
        has_webhook_secret=True,
        secrets_are_lost=False,
        **Issuer.model_validate(_EXAMPLE).model_dump(mode="json", exclude_none=True),
    )

    name: Annotated[str, Field(examples=["acme"])]
    source: Annotated[str, word("Where it is configured.", "table", "file")]
    status: Annotated[str, word("Whether it is in force.", "in_force", "hidden", "unreadable")]
    changed_at: Annotated[datetime | SkipJsonSchema[None], Field(description="Absent for one of the file.")] = None
    has_client_secret: bool
    has_webhook_secret: bool
    secrets_are_lost: Annotated[
        bool, Field(description="Whether it has secrets that no master secret opens: give them again.")
    ]
    warning: Annotated[
        str | SkipJsonSchema[None], Field(description="After a change: why its keys can't be had now.")
    ] = None


IssuerAnswer: type[KnownIssuer] = create_model(
    "IssuerAnswer",
    __base__=KnownIssuer,
    __module__=__name__,
    __doc__="An issuer without its secrets. Its members are absent where its row is `unreadable`.",
    **_ANSWER,
)


class IssuersAnswer(BaseModel):
    """All issuers, in force or not: first those of the file."""

    items: list[IssuerAnswer]  # type: ignore[valid-type]  # made at run time


def changes_in(body: RequestBody) -> tuple[dict[str, Any], dict[str, str | None]]:
    """The members of an issuer that a body sets, and the secrets that it gives or removes."""
    sent = {name: getattr(body, name) for name in body.model_fields_set}
    secrets = {name: sent.pop(name) for name in IssuerSecrets.model_fields if name in sent}
    return {name: value for name, value in sent.items() if value is not None}, secrets
