"""Reauthentication: a user proves the password again within a session, whose refresh token rotates with it."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import select, update

from ..actors import Actor
from ..errors import InvalidGrant, Refusal
from ..events.audit import Event, record
from ..limits.limits import Limits
from ..sessions.answers import Tokens
from ..sessions.rotation import Rotation
from ..sessions.start import Authenticated
from ..storage.database import Database
from ..storage.tables import Session, User
from ..storage.tasks import own_task
from ..tokens.refresh_tokens import RefreshToken
from .hashing import Asker
from .sign_in import SignIn


class Reauthentication:
    """Renews the moment at which the user of a session last proved to be the user (claim `auth_time`)."""

    def __init__(self, db: Database, sign_in: SignIn, rotation: Rotation, limits: Limits) -> None:
        self._db = db
        self._sign_in = sign_in
        self._rotation = rotation
        self._limits = limits

    async def reauthenticate(self, refresh_token: str, password: str, *, by: Actor) -> Tokens:
        """The tokens of the same session with a fresh `auth_time`, after a rotation (ASVS 5.0 7.2.4).

        A refresh token is needed, because its successor is derived from it. So a lost answer is retried as a refresh
        is: the same token and password give the same refresh token again. A wrong password changes nothing.

        Raises:
            InvalidGrant: as `Rotation.refresh`, which ends the session of a token that was reused.
            WrongPassword: the password is not the user's, or the user was disabled.
            SlowDown: the password was wrong too often within this session, or as `SignIn.prove`.
            TemporarilyUnavailable: the database is away, or the hash can't be computed now.
        """
        presented, row = await self._rotation.holder(refresh_token, by=by)
        try:
            attempt = self._limits.within_session(presented.session_id, "reauthenticate")
            asker, prove = Asker(by.address, known=True), self._sign_in.prove
            proof = await self._limits.guess(attempt, lambda: prove(row.user_id, password, asker))
            await self._renew(presented, proof, by._replace(kind="user", id=str(row.user_id)))
            tokens = await self._rotation.refresh(refresh_token, by=by)
        except Refusal as refusal:
            raise refusal.about(row.id, row.user_id, row.client_id) from None
        return replace(tokens, password_change_required=proof.password_change_required)

    @own_task
    async def _renew(self, presented: RefreshToken, proof: Authenticated, by: Actor) -> None:
        """Writes the moment, if the token is still the newest or the one before, and the password still the user's."""
        async with self._db.begin() as tx:
            # FOR SHARE as in `Starting.start`: a change of the user comes before this transaction, or waits for it.
            user = (
                await tx.execute(
                    select(User.password_hash, User.disabled_at, self._db.now().label("now"))
                    .where(User.id == proof.user_id)
                    .with_for_update(read=True)
                )
            ).one_or_none()
            if user is None or user.disabled_at is not None or user.password_hash != proof.password_hash:
                raise InvalidGrant("user changed meanwhile")
            client_id = await tx.scalar(
                update(Session)
                .where(
                    Session.id == presented.session_id,
                    Session.end_reason.is_(None),
                    Session.generation.in_((presented.generation, presented.generation + 1)),
                )
                .values(auth_time=user.now, amr="pwd")
                .returning(Session.client_id)
            )
            if client_id is None:
                raise InvalidGrant("session changed meanwhile")
            event = Event("session_reauthenticated", proof.user_id, presented.session_id, client_id)
            await record(tx, user.now, by, [event])
