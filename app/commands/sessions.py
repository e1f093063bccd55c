"""`keyturn sessions`: the sign-ins, listed and ended."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import timedelta
from typing import get_args
from uuid import UUID

from ..command_name import called
from ..errors import NotFound
from ..keyturn import Keyturn
from ..sessions.filters import Filter, Status
from ..sessions.rows import SessionRow
from ..sessions.walk import BEGINNING
from .acts import add_verb, by, on_parts
from .arguments import Words, add_word, identifier, moment, whole
from .output import count_of_sessions, note, show, show_list, user_of
from .rows import Row
from .users import found

_RANGES = 100
"""How many ranges of the walk one call takes. The command calls until the walk is over."""


def add_to(words: Words) -> None:
    """Adds the noun and its verbs."""
    verbs = add_word(words, "sessions", "sign-ins").add_subparsers(required=True, metavar="VERB")
    verb = add_verb(verbs, "list", _list, "sessions, the newest first", prints="table")
    _add_filters(verb)
    verb.add_argument("--status", choices=get_args(Status), default="all", help="only these (default: %(default)s)")
    verb.add_argument("--limit", type=whole, default=100, metavar="N", help="how many (default: %(default)s)")
    verb.add_argument("--before", type=identifier, metavar="ID", help="sessions before this one (default: the newest)")
    verb = add_verb(verbs, "show", _show, "one session", prints="record")
    verb.add_argument("session", type=identifier, metavar="SESSION", help="id, as `sessions list` shows it")
    verb = add_verb(verbs, "end", _end, "end sessions, by their ids or by filters")
    verb.add_argument(
        "session",
        type=identifier,
        nargs="*",
        default=[],
        metavar="SESSION",
        help="ids, as `sessions list` shows them (default: none; then a filter)",
    )
    _add_filters(verb)
    verb.add_argument("--preview", action="store_true", help="say how many would end, and end none")
    verb.set_defaults(run=_checked)


def _add_filters(verb: argparse.ArgumentParser) -> None:
    filters = verb.add_argument_group("filters", "A session must meet all of them.")
    filters.add_argument("--user", help="id or e-mail (default: any)")
    filters.add_argument("--client", metavar="ID", help="the client it belongs to (default: any)")
    filters.add_argument(
        "--created-before",
        type=moment,
        metavar="MOMENT",
        help="signed in before, as 2026-01-31T12:00:00Z (default: any)",
    )
    filters.add_argument("--created-after", type=moment, metavar="MOMENT", help="signed in after (default: any)")
    filters.add_argument("--idle-since", type=moment, metavar="MOMENT", help="not refreshed since (default: any)")
    filters.add_argument("--address", help="the client's address (default: any)")
    filters.add_argument("--device", metavar="ID", help="the device id that the client gave (default: any)")
    filters.add_argument(
        "--issuer", metavar="NAME", help="began with a token of this issuer, also of a removed one (default: any)"
    )


async def _filter(keyturn: Keyturn, arguments: argparse.Namespace, status: Status) -> Filter:
    return Filter(
        user_id=(await found(keyturn, arguments.user)).id if arguments.user else None,
        client_id=arguments.client,
        created_before=arguments.created_before,
        created_after=arguments.created_after,
        idle_since=arguments.idle_since,
        address=arguments.address,
        device_id=arguments.device,
        issuer_name=arguments.issuer,
        status=status,
    )


async def _list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    filtered, sessions = await _filter(keyturn, arguments, arguments.status), list[SessionRow]()
    last = arguments.before
    # A page may end before its limit, where Keyturn has looked at many sessions. Then the next one goes on.
    while arguments.limit > len(sessions):
        page = await keyturn.reading.list(filtered, limit=arguments.limit - len(sessions), before=last)
        sessions += page.sessions
        last = page.last
        if last is None:
            break
    emails = await keyturn.users.emails({session.user_id for session in sessions})
    short = [_in_short(session, emails) for session in sessions]
    show_list([_session(session, emails) for session in sessions], arguments, short=short, cut=("email", "status"))
    if last is not None and not arguments.json:
        note(f"there are more: --before {last}, or a higher --limit")


async def _show(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    try:
        session = await keyturn.reading.find(arguments.session)
    except NotFound:
        raise _none(str(arguments.session)) from None
    upstream = (await keyturn.upstream_sessions.of([session.id])).get(session.id)
    of_upstream = {
        "upstream": upstream and upstream.issuer_name,
        "upstream_session_id": upstream and upstream.upstream_id,
        "organization": upstream and upstream.organization,
    }
    show({**_session(session, await keyturn.users.emails({session.user_id})), **of_upstream}, arguments)


def _checked(arguments: argparse.Namespace) -> None:
    """Runs `end`, unless it is not clear which sessions are meant."""
    names = ("user", "client", "created_before", "created_after", "idle_since", "address", "device", "issuer")
    filtered = any(getattr(arguments, name) is not None for name in names)
    if filtered and arguments.session:
        arguments.parser.error("ids are not allowed with filters")
    if not filtered and not arguments.session:
        arguments.parser.error("ids or a filter are required")
    if arguments.preview and not filtered:
        arguments.parser.error("--preview needs a filter")
    on_parts(_end)(arguments)


async def _end(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    if not arguments.session:
        await _end_matching(keyturn, arguments)
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


async def _end_matching(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    filtered = await _filter(keyturn, arguments, "live")
    total, last = 0, BEGINNING
    while True:
        if arguments.preview:
            number, end = await keyturn.reading.count(filtered, after=last, ranges=_RANGES)
        else:
            number, end = await keyturn.sweeping.end_matching(filtered, by=by(), after=last, ranges=_RANGES)
        total += number
        if end is None:
            break
        last = end
        if not arguments.preview:
            note(f"{count_of_sessions(total)} so far")
    print(f"{count_of_sessions(total)} {'would end' if arguments.preview else 'ended'}")


def _none(named: str) -> NotFound:
    return NotFound(f"no such session {named}; {called()} sessions list shows them")


def _session(session: SessionRow, emails: Mapping[UUID, str]) -> Row:
    return {
        "id": session.id,
        "user_id": session.user_id,
        "email": emails.get(session.user_id),
        "client_id": session.client_id,
        "status": session.over() or "live",
        "amr": session.amr,
        "authenticated_at": session.auth_time,
        "scope": session.scope,
        "device_id": session.device_id,
        "device_name": session.device_name,
        "address": session.address,
        "user_agent": session.user_agent,
        "generation": session.generation,
        "created_at": session.created_at,
        "rotated_at": session.rotated_at,
        "idle_expires_at": session.idle_expires_at,
        "absolute_expires_at": session.absolute_expires_at,
        "ended_at": session.over_since(),
    }


def _in_short(session: SessionRow, emails: Mapping[UUID, str]) -> Row:
    over = session.over()
    return {
        "id": session.id,
        "email": user_of(session.user_id, emails),
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
