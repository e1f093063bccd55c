"""The sentence of each event: subject first, the actor named. Pure.

An administrator is named by the id and never by the e-mail address: a reader of one user's telling must not learn
another user's. A detail may have words of a client or an issuer, so whoever prints a sentence makes it printable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..events.audit import EventKind
from .telling import Line, Noun


def line_of(event: Mapping[str, Any], about: Noun) -> Line:
    """The line of an event, as the database has it."""
    sentence = _SENTENCES.get(event["event"], _unknown)(event)
    if about == "user" and event["session_id"] is not None:
        sentence = f"{sentence.removesuffix('.')} (session {event['session_id']})."
    return Line(
        at=event["at"],
        event=event["event"],
        says=sentence,
        id=event["id"],
        session_id=event["session_id"],
        actor=event["actor"],
        actor_id=event["actor_id"],
        address=event["address"],
        request_id=event["request_id"],
        reason=event["reason"],
    )


def actor_of(event: Mapping[str, Any]) -> str:
    """The actor, as the subject of a sentence."""
    kind, name = event["actor"], event["actor_id"]
    if kind == "user":
        return "The user" if name in {None, str(event["user_id"])} else f"User {name}"
    if kind == "anonymous":
        return "Somebody who had proved nothing"
    if kind == "service":
        return "Keyturn itself"
    if kind == "command":
        return f"The command line, run by {name or 'a user without a name'},"
    words = {"administrator": "Administrator", "upstream": "The issuer"}
    return f"{words.get(kind, kind)} {name or 'without a name'}"


def _where(event: Mapping[str, Any]) -> str:
    return f" from {event['address']}" if event["address"] else ""


def _acted(did: str) -> Callable[[Mapping[str, Any]], str]:
    """A sentence about what the actor did. `{detail}` in it is the event's."""
    return lambda event: f"{actor_of(event)} {did.format(detail=event['detail'] or '?')}{_where(event)}."


def _ended(event: Mapping[str, Any]) -> str:
    return f"The session ended: {ending(event['reason'], actor_of(event), _where(event))}."


def ending(reason: str | None, actor: str, where: str = "") -> str:
    """Why a session ended, as the end of a sentence.

    Args:
        reason: the reason that the session keeps.
        actor: the subject of the sentence. A deadline has none.
        where: from where the actor came, with a blank before it, or nothing.
    """
    subject = actor if actor.startswith("Keyturn") else f"{actor[0].lower()}{actor[1:]}"
    did = {
        "logout": "logged out",
        "logout_all": "logged out of several sessions at once",
        "reuse_detected": "presented an older refresh token{where}, so a copy of it exists",
        "password_changed": "changed the password elsewhere, or had it reset",
        "user_disabled": "disabled the account",
        "user_erased": "erased the account",
        "revoked_by_admin": "ended it, or retired the key of its refresh token",
        "upstream_logout": "said that the user logged out there",
        "session_limit": "signed in once more than the policy's session_limit allows, and this one was the oldest",
        "replaced": "signed in again on the same device, whose new session took its place",
        "signed_out_everywhere": "signed everyone out",
    }.get(reason or "")
    if did is not None:
        return f"{subject} {did.format(where=where) if '{where}' in did else did + where}"
    return {
        "idle_timeout": "nobody refreshed it before its idle deadline",
        "absolute_timeout": "it reached its absolute deadline",
    }.get(reason or "", f"for the reason {reason}")


def _moved(event: Mapping[str, Any]) -> str:
    return f"The session moved: a refresh came{_where(event)} with another {event['detail'] or 'address'}."


def _verified(event: Mapping[str, Any]) -> str:
    did = "took back that the address is proved" if event["detail"] == "withdrawn" else "vouched for the address"
    return f"{actor_of(event)} {did}{_where(event)}."


def _repeated(event: Mapping[str, Any]) -> str:
    return f"{actor_of(event)} tried to register the address once more{_where(event)}. Nothing changed."


def _unknown(event: Mapping[str, Any]) -> str:
    return f"{actor_of(event)} caused the event {event['event']}{_where(event)}."


_SENTENCES: Mapping[EventKind | str, Callable[[Mapping[str, Any]], str]] = {
    "user_created": _acted("made the account"),
    "user_disabled": _acted("disabled the account"),
    "user_enabled": _acted("enabled the account"),
    "user_erased": _acted("erased the account"),
    "registration_repeated": _repeated,
    "role_changed": _acted("gave the account the role {detail}"),
    "claims_changed": _acted("changed the claims of the account"),
    "password_changed": _acted("changed the password"),
    "password_reset": _acted("had a password made, which is good for a day"),
    "session_started": _acted("signed in"),
    "session_moved": _moved,
    "session_renamed": _acted("gave the device another name"),
    "session_reauthenticated": _acted("proved the password again within the session"),
    "session_ended": _ended,
    "signed_out_everywhere": _acted("signed everyone out"),
    "identity_linked": _acted("linked an identity at the issuer {detail}"),
    "identity_unlinked": _acted("took away the identity at the issuer {detail}"),
    "email_verified": _verified,
    "upstream_revoked": _acted("revoked the session at the issuer {detail}"),
    "upstream_given_up": _acted("gave up revoking the session at the issuer {detail}"),
    "upstream_ordered_anew": _acted("ordered anew that the session at the issuer {detail} be revoked"),
}
"""The events that are about a user or a session. Those on keys, policies and issuers are in no telling."""
