"""Filters: which sessions a list shows, a preview counts and an administrator ends. They mean the same in each."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, Literal, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, ScalarSelect, and_, exists, not_, select
from sqlalchemy.orm import InstrumentedAttribute

from ..policies import Policy
from ..storage.tables import Key, Session, UpstreamSession
from ..tokens.key_rows import in_force

_T = TypeVar("_T")

Status = Literal["live", "ended", "all"]
"""Which sessions a filter lets through: those that live, those that are over, or both."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that a session must all meet. None: no condition."""

    user_id: UUID | None = None
    client_id: str | None = None
    created_before: datetime | None = None
    created_after: datetime | None = None
    idle_since: datetime | None = None
    """The session was last refreshed before this moment."""
    address: str | None = None
    device_id: str | None = None
    issuer_name: str | None = None
    """The session began with a token of the issuer of this name, which need not be configured any more."""
    status: Status = "live"

    @property
    def narrows(self) -> bool:
        """Whether there is a condition beside the status."""
        return replace(self, status="live") != Filter()

    def __str__(self) -> str:
        """The filter in one line. Two filters have the same line only if they are equal."""
        values = ((each.name, getattr(self, each.name)) for each in fields(self))
        return repr({name: str(value) for name, value in values if value is not None})

    def matching(self) -> list[ColumnElement[bool]]:
        """The conditions without the status. They need no clock, so a walk of many statements keeps them."""
        conditions: list[ColumnElement[bool]] = []
        if self.user_id is not None:
            conditions.append(Session.user_id == self.user_id)
        if self.client_id is not None:
            conditions.append(Session.client_id == self.client_id)
        if self.created_before is not None:
            conditions.append(Session.created_at < self.created_before)
        if self.created_after is not None:
            conditions.append(Session.created_at > self.created_after)
        if self.idle_since is not None:
            conditions.append(Session.rotated_at < self.idle_since)
        if self.address is not None:
            conditions.append(Session.address == self.address)
        if self.device_id is not None:
            conditions.append(Session.device_id == self.device_id)
        if self.issuer_name is not None:
            its = UpstreamSession.session_id == Session.id, UpstreamSession.issuer_name == self.issuer_name
            conditions.append(exists().where(*its).is_(True))  # a value, as in `has_key`
        return conditions

    def conditions(self, now: datetime, policy: Policy) -> list[ColumnElement[bool]]:
        """All conditions, at the database's `now` and under the policy in force."""
        match self.status:
            case "live":
                return [*self.matching(), *lives(now, policy)]
            case "ended":
                return [*self.matching(), not_(and_(*lives(now, policy)))]
            case "all":
                return self.matching()


def lives(now: datetime, policy: Policy) -> list[ColumnElement[bool]]:
    """The rule of `SessionRow.over`, as conditions."""
    return [*not_over(now, policy), has_key(now)]


def not_over(now: datetime, policy: Policy) -> list[ColumnElement[bool]]:
    """The part of `lives` that a session's own row decides."""
    return [
        Session.ended_at.is_(None),
        Session.idle_expires_at > now,
        Session.rotated_at > now - policy.idle_lifetime,
        Session.created_at > now - policy.absolute_lifetime,
    ]


def has_key(now: datetime) -> ColumnElement[bool]:
    """Whether the key of a session's refresh token is not retired.

    As a value (`is_`), Postgres looks for the key row by row. Of a bare EXISTS it makes a join, and expects that hardly
    a session has a key. Then a page of a list would read and sort all sessions of its user.
    """
    return exists().where(*its_key(now)).is_(True)


def its_key(now: datetime) -> list[ColumnElement[bool]]:
    """Which row of `keys` is the key of a session's refresh token, if the key is not retired. One at most.

    The number alone is not enough. If an operator has deleted all keys, the numbers begin anew. Then a session under
    the deleted key is older than the new key of the same number.
    """
    return [
        Key.use == "refresh",
        Key.number == Session.key_number,
        in_force(now),
        Key.created_at <= Session.rotated_at,
    ]


def not_signed_out(now: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether the key of a session's refresh token was not retired to sign everyone out. A value, as in `has_key`."""
    for_sessions = Key.retired_for.is_not(None), Key.retired_at <= now
    return exists().where(Key.use == "refresh", Key.number == Session.key_number, *for_sessions).is_(False)


def of_its_key(column: InstrumentedAttribute[_T]) -> ScalarSelect[_T]:
    """A column of the key of a session's refresh token, retired or not. NULL if the key was deleted."""
    return select(column).where(Key.use == "refresh", Key.number == Session.key_number).scalar_subquery()
