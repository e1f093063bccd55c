"""The demand for a fresh sign-in: how long ago the user of a session may have proved to be the user (RFC 9470)."""

from __future__ import annotations

from ..errors import InsufficientUserAuthentication
from ..keyturn import Keyturn
from ..sessions.rows import SessionRow


def require_fresh(keyturn: Keyturn, session: SessionRow) -> None:
    """Checks that the user of a session signed in lately enough for an act that needs it.

    A session whose issuer does not say when the user signed in there meets no such demand.

    Raises:
        InsufficientUserAuthentication: the user signed in longer ago than the policy allows, or nobody knows when.
    """
    max_age = keyturn.policies.in_force.reauthentication_age
    if session.auth_time is None or session.now - session.auth_time > max_age:
        refusal = InsufficientUserAuthentication("signed in too long ago", max_age)
        raise refusal.about(session.id, session.user_id, session.client_id)
