"""`keyturn federation sessions`, `revocations`, `replay`: sessions at an issuer, and the revocations it is owed."""

from __future__ import annotations

import argparse
from shlex import quote
from typing import get_args
from uuid import UUID

from ..errors import NotFound
from ..federation.owed import State
from ..federation.scalekit import Status
from ..federation.scalekit_session import ScalekitSession
from ..keyturn import Keyturn
from .acts import add_verb, by
from .arguments import Words, add_word, identifier, moment, whole
from .output import more, note, show, show_list
from .rows import Row


def add_to(verbs: Words) -> None:
    """Adds the verbs to those of the noun `federation`."""
    sessions = add_word(verbs, "sessions", "sessions at an issuer").add_subparsers(required=True, metavar="VERB")
    verb = add_verb(sessions, "get", _get, "one session, as the issuer describes it", prints="record")
    _add_names(verb, "session")
    verb = add_verb(sessions, "list", _list, "a page of a user's sessions", prints="table")
    _add_names(verb, "user")
    verb.add_argument(
        "--status",
        choices=get_args(Status),
        action="append",
        default=[],
        help="of this status; may be repeated (default: any)",
    )
    verb.add_argument(
        "--created-after", type=moment, metavar="MOMENT", help="began after, as 2026-01-31T12:00:00Z (default: any)"
    )
    verb.add_argument("--created-before", type=moment, metavar="MOMENT", help="began before (default: any)")
    verb.add_argument(
        "--limit", type=whole, metavar="N", help="how many a page has (default: as many as the issuer likes)"
    )
    verb.add_argument("--page", metavar="PAGE", help="the page that the one before names (default: the first)")
    verb = add_verb(sessions, "revoke", _revoke, "end one session at the issuer")
    _add_names(verb, "session")
    verb = add_verb(sessions, "revoke-all", _revoke_all, "end all sessions of a user at the issuer")
    _add_names(verb, "user")
    verb = add_verb(
        verbs, "revocations", _revocations, "sign-outs that issuers have not been told of yet", prints="table"
    )
    verb.add_argument("--given-up", action="store_true", help="only those that Keyturn has given up")
    verb.add_argument("--limit", type=whole, default=100, metavar="N", help="how many (default: %(default)s)")
    verb.add_argument(
        "--before", type=identifier, metavar="ID", help="those after this session in the list (default: the newest)"
    )
    verb = add_verb(verbs, "replay", _replay, "tell issuers again of sign-outs that were given up")
    verb.add_argument(
        "session",
        type=identifier,
        nargs="*",
        metavar="SESSION",
        help="the ids of local sessions (default: none; see --all)",
    )
    verb.add_argument("--all", action="store_true", help="all that were given up")


def _add_names(verb: argparse.ArgumentParser, what: str) -> None:
    verb.add_argument("name", metavar="NAME", help="of the issuer")
    verb.add_argument(what, metavar=what.upper(), help="its id at the issuer")


async def _get(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    session = await keyturn.scalekit.get_session(keyturn.issuers.named(arguments.name), arguments.session)
    show(session.members(), arguments)


async def _list(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    page = await keyturn.scalekit.list_sessions(
        keyturn.issuers.named(arguments.name),
        arguments.user,
        page_size=arguments.limit,
        page_token=arguments.page,
        statuses=arguments.status,
        created_after=arguments.created_after,
        created_before=arguments.created_before,
    )
    short = [_in_short(session) for session in page.sessions]
    show_list([session.members() for session in page.sessions], arguments, short=short, cut=("device",))
    if page.next_page is not None:
        note(f"there are more: --page {quote(page.next_page)}")


async def _revoke(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    of = keyturn.issuers.named(arguments.name)
    outcome = await keyturn.revoking.revoke(of, arguments.session, by=by())
    print("revoked" if outcome == "revoked" else "it was over before, or the issuer has no such session")


async def _revoke_all(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    of = keyturn.issuers.named(arguments.name)
    revoked = await keyturn.revoking.revoke_all(of, arguments.user, by=by())
    print("revoked" if revoked is None else f"{revoked} session{'s' * (revoked != 1)} revoked")


async def _revocations(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    state: State | None = "given_up" if arguments.given_up else None
    rows = await keyturn.owed.list(state, limit=arguments.limit, after=arguments.before)
    columns = ("session_id", "issuer", "state", "attempts", "due_at", "failure")
    short = [{column: row[column] for column in columns} for row in rows]
    show_list(rows, arguments, short=short, cut=("issuer", "failure"))
    if not arguments.json:
        more([row["session_id"] for row in rows], arguments.limit, "--before")


async def _replay(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    if bool(arguments.session) == arguments.all:
        arguments.parser.error("ids or --all are required, and not both")
    count, missing = 0, []
    for session_id in dict.fromkeys(arguments.session or await _given_up(keyturn)):
        try:
            await keyturn.owed.renew(session_id, by=by())
            count += 1
        except NotFound:
            missing.append(str(session_id))
    if count or not missing:
        print(f"{count} revocation{'s' * (count != 1)} due now; a running instance carries them out")
    if missing and arguments.session:
        raise NotFound(f"nothing was given up for {', '.join(missing)}")


async def _given_up(keyturn: Keyturn, page: int = 1000) -> list[UUID]:
    """The local sessions of all revocations that were given up, read page by page."""
    ids: list[UUID] = []
    while rows := await keyturn.owed.list("given_up", limit=page, after=ids[-1] if ids else None):
        ids += [row["session_id"] for row in rows]
    return ids


def _in_short(session: ScalekitSession) -> Row:
    columns = ("id", "status", "created_at", "last_active_at", "device")
    members = session.members()
    return {column: members[column] for column in columns}
