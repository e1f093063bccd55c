"""`keyturn sessions`: the sign-ins, listed and ended."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID

from ..command_name import called
from ..errors import NotFound
from ..keyturn import Keyturn
from ..sessions.rows import SessionRow
from .acts import add_verb, by
from .arguments import Words, identifier, whole
from .output import Row, count_of_sessions, more, shortened, show
from .users import found


def add_to(words: Words) -> None:
    """Adds the noun and its verbs."""
    verbs = words.add_parser("sessions", help="sign-ins").add_subparsers(required=True, metavar="VERB")
    verb = add_verb(verbs, "list", _list, "the newest first", reading=True)
    verb.add_argument("--user", help="id or e-mail")
    verb.add_argument("--limit", type=whole, default=100)
    verb.add_argument("--before", type=identifier, metavar="ID", help="sessions before this one")
    verb.add_argument("--live", action="store_true", help="leave out those that are over")
    verb = add_verb(verbs, "show", _show, "one session", reading=True)
    verb.add_argument("session", type=identifier)
    verb = add_verb(verbs, "end", _end, "end sessions, or all of a user", reading=False)
    which = verb.add_mutually_exclusive_group(required=True)
    which.add_argument("session", type=identifier, nargs="*", default=[])
    which.add_argument("--user", help="id or e-mail")


async def _list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    user_id = (await found(keyturn, arguments.user)).id if arguments.user else None
    sessions = await keyturn.reading.list(
        user_id=user_id, limit=arguments.limit, before=arguments.before, live=arguments.live
    )
    emails = await keyturn.users.emails({session.user_id for session in sessions})
    if arguments.json:
        show([_session(session, emails) for session in sessions], arguments)
    else:
        show([_in_short(session, emails) for session in sessions], arguments)
        more([session.id for session in sessions], arguments.limit, "--before")


async def _show(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    try:
        session = await keyturn.reading.find(arguments.session)
    except NotFound:
        raise _none(str(arguments.session)) from None
    show(_session(session, await keyturn.users.emails({session.user_id})), arguments)


async def _end(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    if arguments.user:
        user = await found(keyturn, arguments.user)
        ended = await keyturn.ending.end_of_user(user.id, "revoked_by_admin", by=by())
        print(f"{count_of_sessions(ended)} of {user.email} ended")
        return
    there: dict[UUID, SessionRow] = {}
    missing: list[str] = []
    for session_id in dict.fromkeys(arguments.session):
        try:
            there[session_id] = await keyturn.reading.find(session_id)
        except NotFound:
            missing.append(str(session_id))
    if there:
        ended = await keyturn.ending.end(set(there), "revoked_by_admin", by=by())
        print(f"{count_of_sessions(ended)} ended", flush=True)
        for session in there.values():
            if over := session.over():
                print(f"{session.id} was over before ({over})", flush=True)
    if missing:
        raise _none(", ".join(missing))


def _none(named: str) -> NotFound:
    return NotFound(f"no such session {named}; {called()} sessions list shows them")


def _session(session: SessionRow, emails: Mapping[UUID, str]) -> Row:
    return {
        "id": session.id,
        "user_id": session.user_id,
        "email": emails.get(session.user_id),
        "client_id": session.client_id,
        "status": session.over() or "live",
        "generation": session.generation,
        "created_at": session.created_at,
        "rotated_at": session.rotated_at,
        "idle_expires_at": session.idle_expires_at,
        "absolute_expires_at": session.absolute_expires_at,
        "ended_at": session.ended_at,
    }


def _in_short(session: SessionRow, emails: Mapping[UUID, str]) -> Row:
    over = session.over()
    return {
        "id": session.id,
        "email": shortened(emails.get(session.user_id, "")),
        "status": over or "live",
        "begun": f"{_short(session.now - session.created_at)} ago",
        "refreshed": f"{_short(session.now - session.rotated_at)} ago" if session.generation else "never",
        "ends": "" if over else f"in {_short(session.idle_expires_at - session.now)}",
    }


def _short(duration: timedelta) -> str:
    """A duration in its largest unit: seconds, minutes, hours or days."""
    for unit, letter in ((timedelta(days=1), "d"), (timedelta(hours=1), "h"), (timedelta(minutes=1), "m")):
        if duration >= unit:
            return f"{duration // unit}{letter}"
    return f"{max(timedelta(0), duration) // timedelta(seconds=1)}s"
