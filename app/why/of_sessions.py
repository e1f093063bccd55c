"""The facts and verdicts of one session, made of its row, its promise and the policy in force. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ..errors import InvalidToken
from ..policies import Stored, jittered
from ..sessions.devices import Device
from ..sessions.promises import Promised
from ..sessions.rows import SessionRow
from ..settings import LEEWAY
from .sentences import ending
from .telling import Line, Verdict, count, in_words, shown

_MEMBERS = {
    "idle_lifetime": "Each refresh gives the session {} more",
    "absolute_lifetime": "The session lives {} at most",
    "retry_window": "A lost answer may be asked for again within {}",
    "access_lifetime": "Each access token lives {}",
}
"""The lifetimes that the row keeps, in the order in which they are told."""


@dataclass(frozen=True, slots=True)
class Known:
    """All that was read about a session."""

    row: SessionRow
    promised: Promised
    policy: Stored
    device: Device
    upstream: Any
    """The row of the issuer's sign-in that it came from, or None."""
    key: Mapping[str, Any] | None
    """The key of its refresh token, as the list of keys has it. None: the key was deleted."""

    @property
    def by_key(self) -> bool:
        """Whether the session is over only because its key was retired or deleted: its row has no end."""
        return self.row.ended_at is None and not self.row.has_key and self.row.over() is not None

    @property
    def token_expires_at(self) -> datetime:
        """When its newest access token expires, as `Answers.tokens` has signed it."""
        row = self.row
        jitter = self.policy.in_force.access_jitter
        lifetime = jittered(row.access_lifetime, jitter, row.id, row.generation)
        return min(row.rotated_at + lifetime, row.absolute_expires_at)


def facts(known: Known) -> Iterator[str]:
    """The sentences on the session as it stands now."""
    row = known.row
    yield f"The session is of user {row.user_id} and client {row.client_id}, with the role {row.role}."
    yield f"The session began at {shown(row.created_at)} {_proof(known)}."
    yield f"The session was used last {_place(known)}."
    if row.generation:
        yield f"The session was refreshed {count(row.generation, 'time')}, last at {shown(row.rotated_at)}."
    else:
        yield "The session was never refreshed."
    if row.auth_time is not None and row.auth_time > row.created_at:
        yield f"The user last proved the password at {shown(row.auth_time)}."
    yield _key(known)
    yield from _bounds(known)
    if known.upstream is not None:
        yield from _owed(known.upstream)
    over, since = row.over(), row.over_since()
    if over is None:
        first = min(row.idle_expires_at, row.absolute_expires_at)
        yield f"The session lives. Unless it is refreshed before, it ends at {shown(first)}."
        yield f"The session ends in any case at {shown(row.absolute_expires_at)}{_cut_upstream(known)}."
    else:
        yield f"The session is over{f' since {shown(since)}' if since else ''}, with the reason {over}."


def _proof(known: Known) -> str:
    if known.upstream is None:
        return "by a password" if known.row.amr == "pwd" else "by a sign-in"
    organization = f" for the organization {known.upstream.organization}" if known.upstream.organization else ""
    return f"by a token of the issuer {known.upstream.issuer_name}{organization}"


def _place(known: Known) -> str:
    device, row = known.device, known.row
    named = f" on {row.device_name}" if row.device_name else ""
    program = " on ".join(name for name in (device.browser, device.system) if name)
    moved = f", noted at {shown(known.promised.moved_at)}" if known.promised.moved_at else ", as at the sign-in"
    return f"from {row.address or 'an unknown address'}{named}{f' with {program}' if program else ''}{moved}"


def _key(known: Known) -> str:
    number = known.row.key_number
    if known.key is None:
        return f"The refresh token stands under the refresh key {number}, which was deleted."
    key = f"The refresh token stands under the refresh key {number} ({known.key['kid']}), which"
    status, retires = known.key["status"], known.key["retires_at"]
    if status == "retired":
        return f"{key} was retired at {shown(known.key['retired_at'])}."
    does = {"signs": "signs", "unknown": "is of a later release"}.get(status, "no longer signs")
    return f"{key} {does}{f' and retires at {shown(retires)}' if retires is not None else ''}."


def _bounds(known: Known) -> Iterator[str]:
    for member, sentence in _MEMBERS.items():
        promised: timedelta = getattr(known.promised, member)
        in_force: timedelta = getattr(known.policy.in_force, member)
        if in_force < promised:
            source = "policy" if known.policy.source(member) == "policy" else "setting"
            by = f"by the {source} in force, which is stricter than the {in_words(promised)} of the sign-in"
        else:
            by = "as promised at the sign-in"
        yield f"{sentence.format(in_words(min(in_force, promised)))}, {by}."


def _cut_upstream(known: Known) -> str:
    if not known.promised.bounded_upstream:
        return ""
    return f", when the session at the issuer {known.upstream.issuer_name if known.upstream else 'it came from'} ends"


def _owed(upstream: Any) -> Iterator[str]:
    """How far the revocation of the issuer's own session has come."""
    at = f"The session at the issuer {upstream.issuer_name}"
    if upstream.due_at is not None:
        tried = f" after {count(upstream.attempts, 'attempt')} ({upstream.failure})" if upstream.attempts else ""
        yield f"{at} is to be revoked: the next attempt{tried} is due at {shown(upstream.due_at)}."
    elif upstream.outcome == "given_up":
        yield f"{at} was to be revoked, and Keyturn gave up at {shown(upstream.settled_at)} ({upstream.failure})."
    elif upstream.outcome is not None:
        words = {"revoked": "was revoked", "gone": "was found to be over"}
        yield f"{at} {words.get(upstream.outcome, upstream.outcome)} at {shown(upstream.settled_at)}."


def verdict_of_verify(known: Known, refusal: InvalidToken | None) -> Verdict:
    """The answer to the newest access token now.

    Args:
        known: the session.
        refusal: how the check of revocation refuses the session, or None if it lets the session through. The check is
            the one that verifications ask, with Redis or the database.
    """
    expires = known.token_expires_at
    if known.row.over() == "signed_out_everywhere" and known.by_key:
        says = "refuses it as junk, without a reason: the key that signed it is retired"
        return Verdict("verify", 401, None, f"Verify {says}.")
    if expires <= known.row.now - LEEWAY:
        says = f"its newest access token expired at {shown(expires)}"
        return Verdict("verify", 401, "token_expired", f"Verify refuses it: {says}.")
    if refusal is not None:
        reason = f"the reason {refusal.reason}" if refusal.reason else "no reason, as there is no such session"
        return Verdict("verify", 401, refusal.reason, f"Verify refuses its access tokens, with {reason}.")
    return Verdict("verify", 200, None, f"Verify accepts its newest access token until {shown(expires)}.")


def verdict_of_refresh(known: Known) -> Verdict:
    """The answer to the newest refresh token now, and to the one before it."""
    row, over = known.row, known.row.over()
    if over is not None:
        return Verdict("refresh", 401, over, f"A refresh is refused with the reason {over}.")
    if not row.generation:
        return Verdict("refresh", 200, None, "A refresh with its refresh token gives the next tokens.")
    retried = row.rotated_at + row.retry_window
    before = (
        f"The one before it gets the same answer again until {shown(retried)}"
        if retried > row.now
        else "The one before it ends the session, unless it comes with its retry key"
    )
    says = f"A refresh with its newest refresh token gives the next tokens. {before}."
    return Verdict("refresh", 200, None, says)


def lines(row: SessionRow, everyone: Sequence[Line] = ()) -> Iterator[Line]:
    """The lines that the row alone tells: the last refresh, and a deadline that passed.

    Args:
        row: the session.
        everyone: the event that signed everyone out, if it ended the session. No session has one of its own from it.
    """
    if row.generation:
        says = f"The session was refreshed, number {row.generation} and the last so far."
        yield Line(row.rotated_at, "refreshed", says, session_id=row.id)
    over, since = row.over(), row.over_since()
    if row.ended_at is not None or over is None or since is None:
        return
    yield from everyone
    if over in {"idle_timeout", "absolute_timeout"}:
        says = f"The session ended: {ending(over, '?')}."
        yield Line(since, "deadline", says, session_id=row.id, reason=over)
    elif not everyone:
        says = f"The session ended: the key of its refresh token was retired ({over})."
        yield Line(since, "key_retired", says, session_id=row.id, reason=over)
