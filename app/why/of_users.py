"""The facts and the verdict of one user, made of the account's row, identities and sessions. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from ..federation.identities import Linked
from ..policies import Policy
from ..sessions.rows import SessionRow
from ..storage.tables import User
from ..users.made_passwords import has_run_out
from .telling import Verdict, count, shown


@dataclass(frozen=True, slots=True)
class Account:
    """All that was read about a user."""

    user: User
    now: datetime
    identities: Sequence[Linked]
    configured: Collection[str]
    """The issuers that are configured now, by their first `iss`."""
    live: Sequence[SessionRow]
    ended: Sequence[SessionRow]
    more_live: bool
    """Whether there are more live sessions than those that were read."""
    policy: Policy


def facts(account: Account) -> Iterator[str]:
    """The sentences on the account as it stands now."""
    user = account.user
    yield f"The account was made at {shown(user.created_at)}, and has the role {user.role}."
    yield _address(user)
    if user.disabled_at is not None:
        yield f"The account is disabled since {shown(user.disabled_at)}: nobody can sign in to it."
    yield _password(user, account.now)
    if user.email is not None:
        length = count(account.policy.password_length, "character")
        yield f"A new password must have at least {length}. An older one goes on."
    if user.claims:
        yield "The access tokens carry claims that an administrator set."
    for identity in account.identities:
        counts = (
            "" if identity.issuer in account.configured else ", which is no longer configured, so it lets nobody in"
        )
        yield f"The account has an identity at the issuer {identity.issuer}{counts}."
        yield f"A token of that issuer was exchanged last at {shown(identity.last_used_at)}."
    yield from _sessions(account)


def _address(user: User) -> str:
    if user.email is None:
        return "The account has no e-mail address, so no password can be right for it."
    if user.email_verified_at is None:
        return "Nobody has proved that the e-mail address is the user's."
    return f"The e-mail address counts as proved since {shown(user.email_verified_at)}."


def _password(user: User, now: datetime) -> str:
    if user.password_hash is None:
        return "The account has no password."
    if user.password_expires_at is None:
        return "A person chose the password, which never runs out."
    if has_run_out(user.password_expires_at, now):
        return f"Keyturn made the password, which ran out at {shown(user.password_expires_at)}: it lets nobody in."
    return f"Keyturn made the password, which is good until {shown(user.password_expires_at)}, and asks for a new one."


def _sessions(account: Account) -> Iterator[str]:
    live = account.live
    number = f"more than {len(live)}" if account.more_live else str(len(live))
    limit = account.policy.session_limit
    most = f" The policy allows {limit}, and a further sign-in ends the oldest." if limit is not None else ""
    yield f"The account has {number} live session{'s' * (len(live) != 1)}.{most}"
    for row in live:
        used = f"was refreshed last at {shown(row.rotated_at)}" if row.generation else "was never refreshed"
        yield f"Session {row.id} lives since {shown(row.created_at)} and {used}."
    for row in account.ended:
        since = row.over_since()
        yield f"Session {row.id} ended{f' at {shown(since)}' if since else ''} ({row.over()})."


def verdict_of_sign_in(account: Account) -> Verdict:
    """The answer to the right password now. The answer to a refused one is that to a wrong one."""
    user = account.user
    usable = [each for each in account.identities if each.issuer in account.configured]
    other = f" A token of {count(len(usable), 'issuer')} may still be exchanged." if usable else ""
    if user.disabled_at is not None:
        says = "A sign-in is refused, with a password as a wrong one is: the account is disabled."
        return Verdict("sign_in", 401, None, says)
    if user.email is None or user.password_hash is None:
        return Verdict("sign_in", 401, None, f"No password is right for this account.{other}")
    if has_run_out(user.password_expires_at, account.now):
        says = "The right password is refused as a wrong one is, because it has run out."
        return Verdict("sign_in", 401, None, f"{says}{other}")
    asked = " The answer asks for a new password." if user.password_expires_at is not None else ""
    return Verdict("sign_in", 200, None, f"A sign-in with the right password gives tokens.{asked}")
