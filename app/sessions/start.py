"""Starting a session for a user whose password was right, or for whom an issuer vouches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import InvalidGrant, InvalidScope
from ..events.audit import Event, record
from ..policies import Policies, Policy
from ..revocation.publishing import Comparison, Publishing
from ..storage.database import Database
from ..storage.tables import Session, User, uuid7
from ..storage.tasks import own_task
from ..tokens.keys import Keys
from ..tokens.refresh_tokens import RefreshKey, RefreshToken, issue
from .answers import Answers, Tokens
from .displaced import Newcomer, end_displaced
from .marking import count_ended
from .rows import SessionRow
from .turns import Turns


@dataclass(frozen=True, slots=True)
class Authenticated:
    """Proof that a password was right for a user. `Starting.start` checks that the user has not changed since."""

    user_id: UUID
    password_hash: str = field(repr=False)
    password_change_required: bool = False
    """Whether Keyturn made the password, so that it is good for a day at most."""


@dataclass(frozen=True, slots=True)
class Vouched:
    """Proof that an issuer vouches for a user, with all that the session takes over from it."""

    user_id: UUID
    secret: bytes = field(repr=False)
    """Bytes that only a holder of the issuer's token has. The first refresh token is derived from them: see `issue`."""
    note: Callable[[AsyncConnection, UUID, datetime], Awaitable[None]] = field(repr=False)
    """Called in the transaction that inserts the session, with its id and the time. If it raises, no session starts."""
    auth_time: datetime | None = None
    """When the user signed in at the issuer. None: the issuer does not say, so no demand for a fresh sign-in is met."""
    amr: str | None = None
    """How the user signed in there (RFC 8176): words separated by blanks."""
    absolute_expires_at: datetime | None = None
    """When the issuer's own session ends in any case, where that is known. The local one never outlives it."""
    password_change_required: bool = False


Proof = Authenticated | Vouched
"""The reason for which a session may start."""


_ATTEMPTS = 3


class Starting:
    """Starts sessions."""

    def __init__(
        self,
        db: Database,
        keys: Keys,
        answers: Answers,
        policies: Policies,
        client_id: str,
        publishing: Publishing,
    ) -> None:
        """Every session that starts here gets the policy in force and this client."""
        self._db = db
        self._keys = keys
        self._answers = answers
        self._policies = policies
        self._client_id = client_id
        self._publishing = publishing
        self._turns = Turns()

    @own_task
    async def start(
        self,
        proof: Proof,
        *,
        by: Actor,
        user_agent: str | None = None,
        device_id: str | None = None,
        device_name: str | None = None,
        scope: frozenset[str] | None = None,
    ) -> Tokens:
        """Starts a session for a user. The sessions that it displaces end before the answer.

        Args:
            proof: the outcome of the check of the password, or of an issuer's token.
            by: the actor. The session keeps its address.
            user_agent: the client's own name for itself, which the session keeps: 256 characters at most.
            device_id: the client's name for its device. A live session of the same device and client is replaced.
            device_name: the name of the device, for people. None: that of the session that is replaced.
            scope: the scopes that the client asks for. None: all that the policy has.

        Raises:
            Exception: whatever the `note` of a proof raises.
            InvalidGrant: since then the password was changed, the user was disabled or deleted, or everyone signed out.
            InvalidScope: the policy does not have all of these scopes.
            TemporarilyUnavailable: the database is away, or other sign-ins of the user are before this one.
        """
        await self._keys.catch_up()
        key, policy = self._keys.signing_refresh, self._policies.in_force
        granted = policy.scopes if scope is None else scope
        if not granted <= policy.scopes:
            raise InvalidScope("not in the policy", user_id=proof.user_id)
        told = {
            "scope": " ".join(sorted(granted)) or None,
            "device_id": device_id,
            "device_name": device_name,
            "address": by.address,
            "user_agent": user_agent,
        }
        if device_id is not None or policy.session_limit is not None:
            started = await self._start_in_turn(key, proof, told, policy, by)
        else:
            async with self._db.begin() as tx:
                started = await self._insert(tx, key, proof, told, policy, by)
        await self._keys.known_to_all(key)
        # Made last, so that a sign-in is refused if this process has read meanwhile that everyone was signed out.
        row, first = started
        tokens = self._answers.tokens(row, first, row.now)
        return replace(tokens, password_change_required=proof.password_change_required)

    async def _start_in_turn(
        self, key: RefreshKey, proof: Proof, told: Mapping[str, str | None], policy: Policy, by: Actor
    ) -> tuple[SessionRow, RefreshToken]:
        """Starts a session, and ends those that it displaces, in one transaction.

        Redis has to learn of an end before the transaction (app/revocation/publishing.py). So this function looks first
        which sessions will end. If another sign-in of the user came between on another process, it looks again.
        Otherwise the transaction would fence, and parallel sign-ins of one user would keep all processes from Redis.
        After some attempts it fences all the same: that is slow, and right.
        """
        newcomer = Newcomer(proof.user_id, self._client_id, told["device_id"])
        comparison: Comparison | None = None
        async with self._turns.of(proof.user_id):
            for last in (*[False] * (_ATTEMPTS - 1), True):
                async with self._db.look(hot_path=False) as connection:
                    expected = await newcomer.looks(connection, self._db, policy)
                published = await self._publishing.publish(expected.ids)
                async with self._db.begin() as tx:
                    await self._publishing.hold(tx)
                    # Sign-ins of one user take turns from here to the commit, so that each counts the one before. The
                    # lock also keeps out a sign-in on a process that does not know of the limit yet (FOR SHARE).
                    await tx.execute(select(User.id).where(User.id == proof.user_id).with_for_update(key_share=True))
                    displaced = await newcomer.looks(tx, self._db, policy)
                    if not last and not displaced.ids <= published.ids:
                        continue
                    ended = await end_displaced(tx, self._db, policy, displaced, by=by)
                    named = {**told, "device_name": told["device_name"] or displaced.device_name}
                    started = await self._insert(tx, key, proof, named, policy, by)
                    if ended:
                        comparison = await self._publishing.compare(tx, published, ended)
                count_ended(ended.values())
                break
        if comparison is not None:
            await comparison.known_to_all()
        return started

    async def _insert(
        self,
        tx: AsyncConnection,
        key: RefreshKey,
        proof: Proof,
        told: Mapping[str, str | None],
        policy: Policy,
        by: Actor,
    ) -> tuple[SessionRow, RefreshToken]:
        """Inserts the session, if the user has not changed since the password was checked, with its refresh token.

        Raises:
            InvalidGrant: as `start`.
        """
        vouched = proof if isinstance(proof, Vouched) else None
        first = issue(key, uuid7(), vouched.secret if vouched else None)
        # FOR SHARE lets no transaction change or disable the user until this one commits. A transaction that comes
        # later ends this session. If one came earlier, this transaction sees the change.
        columns = User.id, User.role, User.claims, User.password_hash, User.disabled_at
        user = (
            await tx.execute(
                select(*columns, self._db.now().label("now")).where(User.id == proof.user_id).with_for_update(read=True)
            )
        ).one_or_none()
        same = isinstance(proof, Vouched) or (user is not None and user.password_hash == proof.password_hash)
        if user is None or user.disabled_at is not None or not same:
            description = None if vouched else "E-mail or password is wrong."
            raise InvalidGrant("user changed meanwhile", description=description, user_id=proof.user_id)
        ends = user.now + policy.absolute_lifetime
        if vouched and vouched.absolute_expires_at:
            ends = min(ends, vouched.absolute_expires_at)
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
            "idle_expires_at": min(user.now + policy.idle_lifetime, ends),
            "absolute_expires_at": ends,
            "ended_at": None,
            "end_reason": None,
            "idle_lifetime": policy.idle_lifetime,
            "absolute_lifetime": policy.absolute_lifetime,
            "retry_window": policy.retry_window,
            "access_lifetime": policy.access_lifetime,
            "auth_time": vouched.auth_time if vouched else user.now,
            "amr": vouched.amr if vouched else "pwd",
            "claims": user.claims,
            "retry_key_digest": None,
            **told,
        }
        await tx.execute(insert(Session).values(session))
        if vouched:
            await vouched.note(tx, first.session_id, user.now)
        started = Event("session_started", user.id, first.session_id, self._client_id)
        await record(tx, user.now, by, [started])
        return SessionRow.of(session, user.now, policy), first
