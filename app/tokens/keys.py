"""The key set: working keys as sealed rows, one of a use signs, all that are not retired verify.

A row is sealed with AES-256-GCM under a key that HKDF (RFC 5869) derives from the master secret; the row's id, use,
algorithm and number are associated data, so that no sealed key can be passed off as another (a changed bit stops the
start). Working keys are random and never derived from each other or from the master secret: whoever learns one of them
learns no other.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Literal, TypeVar, get_args

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm, get_default_algorithms
from jwt.utils import base64url_encode
from sqlalchemy import ColumnElement, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..actors import Actor
from ..errors import ConfigurationError, Conflict, InvalidGrant, NotFound, TemporarilyUnavailable
from ..settings import Algorithm
from ..storage.database import Database
from ..storage.locks import KEYS
from ..storage.tables import Key
from ..storage.tasks import own_task
from .refresh_tokens import RefreshKey, RefreshToken, key_number, prepared_hmac, verify

_N = TypeVar("_N")
_K = TypeVar("_K")

Use = Literal["access", "refresh"]
RsaBits = Literal[2048, 3072]
"""Bits of an RS256 key: RFC 7518 section 3.3 asks for 2048 at least; 3072 are as strong as ES256, and slower."""

POLL = timedelta(seconds=15)
"""Each process reads the key set this often."""

PUBLISHED_FOR = timedelta(seconds=60)
"""How long a new key is known before it signs: four polls, so that no process meets a token of a key it never saw."""

READ_BY_ALL = POLL + timedelta(seconds=5)
"""How long after a change of the table every process that reaches the database goes by it."""

UNREAD_LIMIT = timedelta(seconds=30)
"""A process that could not read the key set for this long can't call an unknown refresh key junk any more."""


_ALGORITHMS = get_default_algorithms()
_TO_JWK: dict[Algorithm, Callable[..., Any]] = {
    "ES256": ECAlgorithm.to_jwk,
    "RS256": RSAAlgorithm.to_jwk,
    "EdDSA": OKPAlgorithm.to_jwk,
}


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A key for access tokens. `signing` is a secret; `verifying` is the same one for HS256."""

    kid: str
    algorithm: Algorithm
    signing: Any = field(repr=False)
    verifying: Any = field(repr=False)
    sign: Callable[[bytes], bytes] = field(init=False, repr=False, compare=False)
    """Makes a signature (RFC 7515 section 5.1): by PyJWT; for HS256 as prepared, at a tenth of the cost."""

    def __post_init__(self) -> None:
        sign = prepared_hmac(self.signing) if self.algorithm == "HS256" else self._signature
        object.__setattr__(self, "sign", sign)

    def _signature(self, message: bytes) -> bytes:
        return _ALGORITHMS[self.algorithm].sign(message, self.signing)

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's (RFC 7515 section 5.2)."""
        if self.algorithm == "HS256":
            return hmac.compare_digest(self.sign(message), signature)
        return _ALGORITHMS[self.algorithm].verify(message, self.verifying, signature)

    def jwk(self) -> dict[str, Any] | None:
        """The public key as a JSON Web Key (RFC 7517), or None: a symmetric key is never published."""
        if self.algorithm == "HS256":
            return None
        jwk: dict[str, Any] = _TO_JWK[self.algorithm](self.verifying, as_dict=True)
        return jwk | {"kid": self.kid, "use": "sig", "alg": self.algorithm, "key_ops": ["verify"]}


@dataclass(frozen=True, slots=True)
class KeySet:
    """What one reading of the table gave. Moments are the database's."""

    access: Mapping[str, AccessKey]
    refresh: Mapping[int, RefreshKey]
    retired: Mapping[int, RefreshKey]
    """Refresh keys whose tags are still known: their holders are told why the session ended, and no more."""
    signs_from: Mapping[str | int, datetime]

    def signing(self, now: datetime) -> tuple[AccessKey, RefreshKey]:
        """The keys that sign: of each use the newest that was published long enough, else the oldest."""
        return (
            self.access[_signing({kid: self.signs_from[kid] for kid in self.access}, now)],
            self.refresh[_signing({number: self.signs_from[number] for number in self.refresh}, now)],
        )


def _signing(signs_from: Mapping[_N, datetime], now: datetime) -> _N:
    """Which key of one use signs: the newest that was published long enough, else the oldest."""
    ready = [name for name, moment in signs_from.items() if moment <= now]
    return max(ready, key=signs_from.__getitem__) if ready else min(signs_from, key=signs_from.__getitem__)


class Keys:
    """The key set of this process, kept at most `POLL` behind the table."""

    def __init__(self, db: Database, master: bytes, algorithm: Algorithm) -> None:
        """Nothing is read yet: `load` first."""
        self._db = db
        self._sealing = AESGCM(
            HKDF(algorithm=SHA256(), length=32, salt=None, info=b"keyturn sealed working key v1").derive(master)
        )
        self._algorithm = algorithm
        self._set = KeySet({}, {}, {}, {})
        self._read_at = float("-inf")
        self._signing: tuple[AccessKey, RefreshKey] | None = None

    # -- what the tokens ask

    @property
    def signing_access(self) -> AccessKey:
        """The key that signs access tokens now."""
        return self._signing_now()[0]

    @property
    def signing_refresh(self) -> RefreshKey:
        """The key under which refresh tokens are issued now."""
        return self._signing_now()[1]

    def _signing_now(self) -> tuple[AccessKey, RefreshKey]:
        if self._signing is None:
            raise TemporarilyUnavailable("no key set was read yet")
        return self._signing

    def access(self, kid: str) -> AccessKey | None:
        """The access key of this id that still verifies, or None.

        Raises:
            TemporarilyUnavailable: as `refresh`.
        """
        return self._known(self._set.access, kid)

    def refresh(self, number: int) -> RefreshKey | None:
        """The refresh key of this number, or None if there is none or it is retired.

        Raises:
            TemporarilyUnavailable: it is unknown, and this process could not read the key set for so long that it
                may be a new one.
        """
        return self._known(self._set.refresh, number)

    def _known(self, keys: Mapping[_N, _K], name: _N) -> _K | None:
        key = keys.get(name)
        if key is None and monotonic() - self._read_at > UNREAD_LIMIT.total_seconds():
            raise TemporarilyUnavailable("unknown key, and the key set is out of date")
        return key

    def retired(self, number: int) -> bool:
        """Whether there was a refresh key of this number, and its sessions are over or about to be."""
        return number in self._set.retired

    def verify_refresh_token(self, text: str) -> RefreshToken:
        """The refresh token that a text spells, without any I/O. Its key may be `retired`: then it opens nothing.

        Raises:
            InvalidGrant: we did not issue it.
            TemporarilyUnavailable: as `refresh`.
        """
        number = key_number(text)
        if number is None:
            raise InvalidGrant("not of a refresh token's form")
        key = self._set.retired.get(number) or self.refresh(number)
        if key is None:
            raise InvalidGrant("unknown refresh key")
        token = verify(text, key)
        if token is None:
            raise InvalidGrant("tag does not match")
        return token

    def jwks(self) -> dict[str, Any]:
        """The public keys (RFC 7517 section 5)."""
        return {"keys": [jwk for key in self._set.access.values() if (jwk := key.jwk())]}

    # -- reading

    async def load(self) -> None:
        """Reads the table. What a later release made of a use or algorithm that this one does not know is left alone.

        Raises:
            ConfigurationError: a row was sealed under another master secret, or changed.
            TemporarilyUnavailable: the database is away.
        """
        began = monotonic()
        async with self._db.look() as connection:
            rows = (
                await connection.execute(
                    select(Key.__table__, self._db.now().label("now"))
                    .where(
                        or_(Key.retired_at.is_(None), Key.use == "refresh"),
                        _known_here(),
                    )
                    .order_by(Key.created_at, Key.kid)
                )
            ).all()
        access: dict[str, AccessKey] = {}
        refresh: dict[int, RefreshKey] = {}
        retired: dict[int, RefreshKey] = {}
        signs_from: dict[str | int, datetime] = {}
        for row in rows:
            if row.retired_at is not None:
                # What can't be unsealed any more only says less to its holders.
                with suppress(ConfigurationError):
                    retired[row.number] = RefreshKey.derive(row.number, self._unseal(row))
                continue
            secret = self._unseal(row)
            if row.use == "refresh":
                refresh[row.number] = RefreshKey.derive(row.number, secret)
                signs_from[row.number] = row.signs_from
            else:
                access[row.kid] = _access_key(row.kid, row.algorithm, secret)
                signs_from[row.kid] = row.signs_from
        self._set = KeySet(access, refresh, retired, signs_from)
        self._signing = self._set.signing(rows[0].now) if access and refresh else None
        self._read_at = began

    async def poll(self, report: Callable[[Exception], object], at_once: asyncio.Event) -> None:
        """Reads the table again and again, also when `at_once` is set; what goes wrong is reported and tried again."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL.total_seconds()):
                    await at_once.wait()
            at_once.clear()
            try:
                await self.load()
            except Exception as e:  # noqa: BLE001  # whatever it was, the next poll tries again
                report(e)

    def _unseal(self, row: Any) -> bytes:
        nonce, sealed = row.sealed[:12], row.sealed[12:]
        try:
            return self._sealing.decrypt(nonce, sealed, _associated(row.kid, row.use, row.algorithm, row.number))
        except (InvalidTag, ValueError):  # ValueError: too short to be sealed at all
            raise ConfigurationError(
                f"key {row.kid} can't be unsealed: KEYTURN_SECRET is not the one it was sealed under, "
                "or the row was changed; where that secret is lost: keyturn keys replace --sign-everyone-out"
            ) from None

    # -- writing

    @own_task
    async def make_first(self, *, by: Actor) -> bool:
        """Makes the first key of each use where there is none; two starts at once make one. True if it made any."""
        live = select(Key.use).where(Key.retired_at.is_(None))
        async with self._db.look() as connection:
            if set((await connection.scalars(live)).all()) == {"access", "refresh"}:
                return False
        secret = _new_secret(self._algorithm)
        async with self._db.begin() as tx:
            await self._lock(tx)
            there = set((await tx.scalars(live)).all())
            if "access" not in there:
                await self._insert(tx, "access", self._algorithm, secret, timedelta(0))
            if "refresh" not in there:
                await self._insert(tx, "refresh", None, os.urandom(32), timedelta(0))
        return there != {"access", "refresh"}

    @own_task
    async def generate(self, use: Use, algorithm: Algorithm | None = None, bits: RsaBits = 2048, *, by: Actor) -> str:
        """Makes a key, which signs from `PUBLISHED_FOR` on. Its id (for refresh: its number is in `list`).

        Raises:
            Conflict: all numbers of refresh keys are taken.
        """
        made = (algorithm or self._algorithm) if use == "access" else None
        # Before the transaction: to find the primes of an RSA key may take longer than a transaction may last.
        secret = _new_secret(made, bits) if made else os.urandom(32)
        async with self._db.begin() as tx:
            await self._lock(tx)
            return await self._insert(tx, use, made, secret, PUBLISHED_FOR)

    @own_task
    async def retire(self, kid: str, *, by: Actor) -> int | None:
        """Ends a key: its tokens are refused within `READ_BY_ALL` everywhere. Done again, it changes nothing.

        Returns:
            The number of a refresh key: `Sessions.end_under` has to end its sessions.

        Raises:
            NotFound: there is no such key.
            Conflict: it is the only one of its use that can sign by now.
        """
        async with self._db.begin() as tx:
            await self._lock(tx)
            key = (await tx.execute(select(Key.use, Key.number, Key.retired_at).where(Key.kid == kid))).one_or_none()
            if key is None:
                raise NotFound("no such key")
            use, number, retired_at = key
            if retired_at is not None:
                return number
            others = select(func.count()).where(
                Key.use == use,
                Key.kid != kid,
                Key.retired_at.is_(None),
                Key.signs_from <= self._db.now(),
                _known_here(),
            )
            if not await tx.scalar(others):
                raise Conflict(
                    "the only key that can sign",
                    description=f"It is the only {use} key that can sign. Generate another and wait "
                    f"{PUBLISHED_FOR // timedelta(seconds=1)} seconds.",
                )
            await tx.execute(update(Key).where(Key.kid == kid).values(retired_at=self._db.now()))
        return number

    @own_task
    async def replace(self, *, by: Actor) -> tuple[str, str, int]:
        """Retires all keys, also those that this master secret can't unseal, and makes new ones that sign at once.

        Numbers of refresh keys stay taken, so that no session passes for one under a new key.

        Returns:
            The ids of the new access key and refresh key, and the latter's number:
            `Sessions.end_all_but_under` has to end the sessions under others.

        Raises:
            Conflict: all numbers of refresh keys are taken.
        """
        secret = _new_secret(self._algorithm)  # before the transaction, as in `generate`
        async with self._db.begin() as tx:
            await self._lock(tx)
            await tx.execute(update(Key).where(Key.retired_at.is_(None)).values(retired_at=self._db.now()))
            access = await self._insert(tx, "access", self._algorithm, secret, timedelta(0))
            refresh = await self._insert(tx, "refresh", None, os.urandom(32), timedelta(0))
            number = await tx.scalar(select(Key.number).where(Key.kid == refresh))
        assert number is not None
        return access, refresh, number

    async def list(self) -> list[dict[str, Any]]:
        """All keys by age, without secrets.

        `status` is retired, published (does not sign yet), signs, verifies, or unknown (a later release made it).
        """
        query = select(Key.__table__, self._db.now().label("now"), _known_here().label("known")).order_by(
            Key.created_at, Key.kid
        )
        async with self._db.look() as connection:
            rows = (await connection.execute(query)).all()
        signing = set()
        for use in get_args(Use):
            here = [row for row in rows if row.use == use and row.known and row.retired_at is None]
            if here:
                signing.add(_signing({row.kid: row.signs_from for row in here}, here[0].now))

        def status(row: Any) -> str:
            if row.retired_at is not None:
                return "retired"
            if not row.known:
                return "unknown"
            if row.kid in signing:
                return "signs"
            return "published" if row.signs_from > row.now else "verifies"

        return [
            {
                "kid": row.kid,
                "use": row.use,
                "algorithm": row.algorithm,
                "number": row.number,
                "status": status(row),
                "created_at": row.created_at,
                "signs_from": row.signs_from,
                "retired_at": row.retired_at,
            }
            for row in rows
        ]

    async def _lock(self, tx: AsyncConnection) -> None:
        # One maker at a time, over all processes. SQLite's transaction holds the write lock already.
        if self._db.is_postgres:
            await tx.execute(select(func.pg_advisory_xact_lock(KEYS)))

    async def _insert(
        self, tx: AsyncConnection, use: Use, algorithm: Algorithm | None, secret: bytes, published_for: timedelta
    ) -> str:
        now = await tx.scalar(select(self._db.now()))
        assert now is not None
        number = None
        if algorithm is None:
            taken = set((await tx.scalars(select(Key.number).where(Key.number.is_not(None)))).all())
            number = next((n for n in range(1, 255) if n not in taken), None)
            if number is None:
                raise Conflict("254 refresh keys", description="All 254 numbers of refresh keys are taken.")
            kid = f"refresh-{number}"
        else:
            kid = _kid(algorithm, secret)
        algorithm_name = algorithm or "HMAC-SHA256"
        nonce = os.urandom(12)
        sealed = nonce + self._sealing.encrypt(nonce, secret, _associated(kid, use, algorithm_name, number))
        await tx.execute(
            insert(Key).values(
                kid=kid,
                use=use,
                algorithm=algorithm_name,
                number=number,
                sealed=sealed,
                created_at=now,
                signs_from=now + published_for,
            )
        )
        return kid


def _known_here() -> ColumnElement[bool]:
    """Whether a row is of a use and an algorithm that this release knows: a later one may share the table."""
    return Key.use.in_(get_args(Use)) & Key.algorithm.in_((*get_args(Algorithm), "HMAC-SHA256"))


def _associated(kid: str, use: str, algorithm: str, number: int | None) -> bytes:
    return json.dumps([kid, use, algorithm, number]).encode()


def _new_secret(algorithm: Algorithm, bits: RsaBits = 2048) -> bytes:
    if algorithm == "HS256":
        return os.urandom(32)
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
    match algorithm:
        case "ES256":
            key = ec.generate_private_key(ec.SECP256R1())
        case "RS256":
            key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
        case "EdDSA":
            key = ed25519.Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # `keyturn keys retire` takes a word that begins with "-" for an option, and one id in 64 would.
    return _new_secret(algorithm, bits) if _kid(algorithm, secret).startswith("-") else secret


def _access_key(kid: str, algorithm: Algorithm, secret: bytes) -> AccessKey:
    if algorithm == "HS256":
        return AccessKey(kid, algorithm, secret, secret)
    # The seal proves that nobody changed the key. To examine an RSA key at each poll would hold up all requests, for 65
    # ms (2048 bits) or 200 ms (3072 bits).
    private = serialization.load_der_private_key(secret, None, unsafe_skip_rsa_key_validation=True)
    return AccessKey(kid, algorithm, private, private.public_key())


def _kid(algorithm: Algorithm, secret: bytes) -> str:
    """The RFC 7638 thumbprint of a public key; random for a secret one, whose thumbprint would invite guessing."""
    if algorithm == "HS256":
        return secrets.token_hex(8)
    jwk = _access_key("", algorithm, secret).jwk() or {}
    # The required members of every kind of key: RFC 7638 section 3.2, RFC 8037 section 2.
    required = {name: jwk[name] for name in ("crv", "e", "kty", "n", "x", "y") if name in jwk}
    canonical = json.dumps(required, sort_keys=True, separators=(",", ":")).encode()
    return base64url_encode(hashlib.sha256(canonical).digest()).decode()
