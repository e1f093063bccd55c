"""`keyturn events`: who changed what, on whom, and when."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import suppress
from typing import cast, get_args
from uuid import UUID

from ..actors import Kind
from ..events.audit import EventKind
from ..keyturn import Keyturn
from .acts import add_verb
from .arguments import Words, add_word, identifier, moment, whole
from .output import more, show_list, user_of
from .rows import Row
from .users import found


def add_to(words: Words) -> None:
    """Adds the noun and its verbs."""
    verbs = add_word(words, "events", "who changed what").add_subparsers(required=True, metavar="VERB")
    verb = add_verb(verbs, "list", _list, "events, the newest first", prints="table")
    verb.add_argument("--user", metavar="USER", help="on this user, by id or e-mail (default: any)")
    verb.add_argument("--session", type=identifier, metavar="ID", help="on this session (default: any)")
    verb.add_argument(
        "--event",
        choices=get_args(EventKind),
        metavar="KIND",
        help=f"one of {', '.join(get_args(EventKind))} (default: any)",
    )
    verb.add_argument(
        "--actor",
        type=_of_actor,
        metavar="ACTOR",
        help=f"by the administrator of this id, or one of {', '.join(get_args(Kind))} (default: any)",
    )
    verb.add_argument(
        "--since",
        type=moment,
        metavar="MOMENT",
        help="from this moment on, as 2026-01-31T12:00:00Z (default: the first)",
    )
    verb.add_argument("--until", type=moment, metavar="MOMENT", help="before this moment (default: now)")
    verb.add_argument("--limit", type=whole, default=100, metavar="N", help="how many (default: %(default)s)")
    verb.add_argument("--before", type=identifier, metavar="ID", help="events before this one (default: the newest)")


async def _list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user_id = await _user_named(keyturn, arguments.user) if arguments.user else None
    events = await keyturn.events.list(
        limit=arguments.limit,
        before=arguments.before,
        user_id=user_id,
        session_id=arguments.session,
        event=arguments.event,
        actor=arguments.actor,
        since=arguments.since,
        until=arguments.until,
    )
    named = [user_id for event in events for user_id in (event["user_id"], _acting_user(event)) if user_id]
    emails = await keyturn.users.emails(set(named))
    show_list(events, arguments, short=[_in_short(event, emails) for event in events], cut=("by", "on", "detail"))
    if not arguments.json:
        more([event["id"] for event in events], arguments.limit, "--before")


async def _user_named(keyturn: Keyturn, named: str) -> UUID:
    """The id of a user, who may be erased: then the events have the pseudonym, which no user has."""
    with suppress(ValueError):
        return UUID(named)
    return (await found(keyturn, named)).id


def _of_actor(text: str) -> Kind | UUID:
    return cast("Kind", text) if text in get_args(Kind) else identifier(text)


def _in_short(event: Row, emails: Mapping[UUID, str]) -> Row:
    return {
        "at": event["at"],
        "event": event["event"],
        "by": _actor(event, emails),
        "on": _user(event["user_id"], emails),
        "detail": event["reason"] or event["detail"],
    }


def _actor(event: Row, emails: Mapping[UUID, str]) -> str:
    """The kind of the actor and its name. For a user: the kind if the event is on the same user, else the address."""
    user_id = _acting_user(event)
    if user_id is None:
        return f"{event['actor']} {event['actor_id'] or ''}".rstrip()
    return str(event["actor"]) if user_id == event["user_id"] else _user(user_id, emails)


def _acting_user(event: Row) -> UUID | None:
    if event["actor"] in {"user", "administrator"} and event["actor_id"]:
        with suppress(ValueError):
            return UUID(event["actor_id"])
    return None


def _user(user_id: UUID | None, emails: Mapping[UUID, str]) -> str:
    return "" if user_id is None else user_of(user_id, emails)
