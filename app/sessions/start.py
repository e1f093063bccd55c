"""Starting a session for a user whose password was right."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import insert, select

from ..actors import Actor
from ..errors import InvalidGrant
from ..events.audit import Event, record
from ..policies import Policies
from ..storage.database import Database
from ..storage.tables import Session, User, uuid7
from ..storage.tasks import own_task
from ..tokens.keys import Keys
from ..tokens.refresh_tokens import issue
from .answers import Answers, Tokens
from .rows import SessionRow


@dataclass(frozen=True, slots=True)
class Authenticated:
    """Proof that a password was right for a user. `Starting.start` checks that the user has not changed since."""

    user_id: UUID
    password_hash: str = field(repr=False)


class Starting:
    """Starts sessions."""

    def __init__(self, db: Database, keys: Keys, answers: Answers, policies: Policies, client_id: str) -> None:
        """Every session that starts here gets the policy in force and this client."""
        self._db = db
        self._keys = keys
        self._answers = answers
        self._policies = policies
        self._client_id = client_id

    @own_task
    async def start(self, proof: Authenticated, *, by: Actor, user_agent: str | None = None) -> Tokens:
        """Starts a session for a user whose password was right.

        Args:
            proof: the outcome of the check of the password.
            by: the actor. The session keeps its address.
            user_agent: the client's own name for itself, which the session keeps: 256 characters at most.

        Raises:
            InvalidGrant: the password was changed, or the user was disabled or deleted, since then.
            TemporarilyUnavailable: the database is away.
        """
        await self._keys.catch_up()
        key, policy = self._keys.signing_refresh, self._policies.in_force
        first = issue(key, uuid7())
        async with self._db.begin() as tx:
            # FOR SHARE lets no transaction change or disable the user until this one commits. A transaction that comes
            # later ends this session. If one came earlier, this transaction sees the change.
            columns = User.id, User.role, User.claims, User.password_hash, User.disabled_at
            user = (
                await tx.execute(
                    select(*columns, self._db.now().label("now"))
                    .where(User.id == proof.user_id)
                    .with_for_update(read=True)
                )
            ).one_or_none()
            if user is None or user.disabled_at is not None or user.password_hash != proof.password_hash:
                raise InvalidGrant(
                    "user changed meanwhile", description="E-mail or password is wrong.", user_id=proof.user_id
                )
            session = {
                "id": first.session_id,
                "user_id": user.id,
                "role": user.role,
                "client_id": self._client_id,
                "token_digest": first.digest,
                "key_number": key.number,
                "generation": 0,
                "created_at": user.now,
                "rotated_at": user.now,
                "idle_expires_at": user.now + min(policy.idle_lifetime, policy.absolute_lifetime),
                "absolute_expires_at": user.now + policy.absolute_lifetime,
                "ended_at": None,
                "end_reason": None,
                "idle_lifetime": policy.idle_lifetime,
                "absolute_lifetime": policy.absolute_lifetime,
                "retry_window": policy.retry_window,
                "access_lifetime": policy.access_lifetime,
                "auth_time": user.now,
                "amr": "pwd",
                "scope": None,
                "claims": user.claims,
                "device_id": None,
                "device_name": None,
                "address": by.address,
                "user_agent": user_agent,
                "retry_key_digest": None,
            }
            await tx.execute(insert(Session).values(session))
            started = Event("session_started", user.id, first.session_id, self._client_id)
            await record(tx, user.now, by, [started])
        await self._keys.known_to_all(key)
        return self._answers.tokens(SessionRow.of(session, user.now, policy), first, user.now)
