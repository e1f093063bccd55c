"""The parts of one Keyturn process, and how they are opened, kept up to date and closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from .actors import SERVICE
from .errors import TemporarilyUnavailable
from .events.reading import Events
from .federation.diagnosis import Diagnosis
from .federation.discovery import Discovery
from .federation.end_session import EndSession
from .federation.exchange import Exchange, Sessions
from .federation.external_tokens import ExternalTokens
from .federation.fetching import Fetching
from .federation.forgetting import Forgetting
from .federation.identities import Identities
from .federation.issuer_changes import IssuerChanges
from .federation.issuers import Issuers
from .federation.key_sets import KeySets
from .federation.owed import Owed
from .federation.revoking import Revoking
from .federation.scalekit import Scalekit
from .federation.session_checks import SessionChecks
from .federation.upstream_logout import UpstreamLogout
from .federation.upstream_sessions import UpstreamSessions
from .limits.junk import Junk
from .limits.limits import Limits
from .limits.refreshes import Refreshes
from .log import get_logger
from .outgoing.sending import Sending
from .policies import Policies, Policy
from .revocation.fence import Reading as PulseReading
from .revocation.revocations import Revocations
from .sampling import Sampling
from .sessions.answers import Answers
from .sessions.ending import Ending
from .sessions.key_changes import KeyChanges
from .sessions.lookup import Lookup
from .sessions.moves import Moves
from .sessions.naming import Naming
from .sessions.policy_changes import PolicyChanges
from .sessions.promises import Promises
from .sessions.reading import Reading
from .sessions.restored import Restored
from .sessions.rotation import Rotation
from .sessions.start import Starting
from .sessions.statistics import Statistics
from .sessions.sweeping import Sweeping
from .sessions.upkeep import Upkeep
from .settings import Settings
from .storage.database import Database
from .storage.schema import check_schema
from .tokens.access_tokens import AccessTokens
from .tokens.cookies import Cookies
from .tokens.cursors import Cursors
from .tokens.key_rotation import KeyRotation
from .tokens.key_seal import KeySeal
from .tokens.key_sharing import KeySharing
from .tokens.keys import Keys
from .tokens.known_devices import KnownDevices
from .tokens.master_secret import master_secret_of, previous_secret_of
from .tokens.primitives import derive
from .tokens.sealed_cookies import SealedCookies
from .users.breached_passwords import BreachedPasswords
from .users.common_passwords import CommonPasswords
from .users.container import container
from .users.erasing import Erasing
from .users.hashing_room import HashingRoom
from .users.password_rules import PasswordRules
from .users.passwords import Passwords
from .users.reauthentication import Reauthentication
from .users.registering import Registering
from .users.sign_in import SignIn
from .users.users import Users
from .why.why import Why

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Keyturn:
    """The parts of one process."""

    settings: Settings
    db: Database
    keys: Keys
    limits: Limits
    junk: Junk
    known_devices: KnownDevices
    revocations: Revocations
    passwords: Passwords
    password_rules: PasswordRules
    sign_in: SignIn
    users: Users
    registering: Registering
    erasing: Erasing
    starting: Starting
    rotation: Rotation
    moves: Moves
    reauthentication: Reauthentication
    ending: Ending
    sweeping: Sweeping
    reading: Reading
    naming: Naming
    upkeep: Upkeep
    restored: Restored
    events: Events
    statistics: Statistics
    key_changes: KeyChanges
    key_rotation: KeyRotation
    key_sharing: KeySharing
    cookies: Cookies
    policies: Policies
    policy_changes: PolicyChanges
    cursors: Cursors
    issuers: Issuers
    issuer_changes: IssuerChanges
    discovery: Discovery
    key_sets: KeySets
    diagnosis: Diagnosis
    scalekit: Scalekit
    revoking: Revoking
    owed: Owed
    session_checks: SessionChecks
    identities: Identities
    exchange: Exchange
    forgetting: Forgetting
    upstream_sessions: UpstreamSessions
    upstream_logout: UpstreamLogout
    end_session: EndSession
    why: Why
    sampling: Sampling


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Keyturn]:
    """Makes the parts, without background tasks, and closes them at the end of the block.

    Raises:
        ConfigurationError: a master secret is missing or weak, cookies could become too large, or the file of issuers
            is not valid.
    """
    db = Database(settings)
    master = master_secret_of(settings)
    previous = previous_secret_of(settings)
    seal = KeySeal(master, previous)
    issuers = Issuers(db, seal, settings)
    keys = Keys(db, seal, settings.signing_algorithm)
    key_rotation = KeyRotation(db, keys, seal, settings)
    revocations = Revocations(db, settings, lambda event, *, level, **more: getattr(_log, level)(event, **more))
    passwords = Passwords(settings, HashingRoom.of(settings, container()))
    sign_in = SignIn(db, passwords)
    limits = Limits(settings, derive(master, b"keyturn limits v1"))
    policies = Policies(db, Policy.of(settings), cookies=settings.cookies, given=settings.model_fields_set)
    access_tokens = AccessTokens(keys, settings)
    answers, lookup = Answers(access_tokens, keys, policies), Lookup(db, policies)
    cookies = Cookies(settings, SealedCookies(keys))
    ending = Ending(db, keys, access_tokens, revocations.publishing, lookup, policies)
    sweeping = Sweeping(db, revocations.publishing, ending, policies)
    refreshes = Refreshes(settings.limit_session)
    rotation = Rotation(db, keys, answers, ending, lookup, policies, refreshes)
    sending = Sending()
    common = CommonPasswords(settings.password_list_file)
    rules = PasswordRules(settings, policies, common, BreachedPasswords(settings, sending))
    fetching = Fetching(sending)
    discovery = Discovery(fetching)
    key_sets = KeySets(fetching, discovery)
    external_tokens = ExternalTokens(issuers, key_sets, db)
    scalekit = Scalekit(fetching)
    starting = Starting(db, keys, answers, policies, settings.client_id, revocations.publishing)
    identities = Identities(db, issuers)
    sessions = Sessions(starting, lookup, ending, answers, keys)
    session_checks = SessionChecks(db, issuers, scalekit, keys, lookup, ending, refreshes)
    users, events, upstream_sessions = Users(db, passwords, rules, sign_in, ending), Events(db), UpstreamSessions(db)
    reading = Reading(db, access_tokens, revocations, lookup, policies)
    federated = issuers, identities, upstream_sessions
    statistics, owed = Statistics(db, policies), Owed(db)
    try:
        yield Keyturn(
            settings=settings,
            db=db,
            keys=keys,
            limits=limits,
            junk=Junk(settings),
            known_devices=KnownDevices(master, previous),
            revocations=revocations,
            passwords=passwords,
            password_rules=rules,
            sign_in=sign_in,
            users=users,
            starting=starting,
            registering=Registering(db, passwords, rules),
            erasing=Erasing(db, ending),
            rotation=rotation,
            moves=Moves(db),
            reauthentication=Reauthentication(db, sign_in, rotation, limits),
            ending=ending,
            sweeping=sweeping,
            reading=reading,
            naming=Naming(db),
            upkeep=Upkeep(db),
            restored=Restored(db, revocations.publishing, events),
            events=events,
            statistics=statistics,
            key_changes=KeyChanges(keys, key_rotation, sweeping),
            key_rotation=key_rotation,
            key_sharing=KeySharing(db, keys, seal, (master, previous)),
            cookies=cookies,
            policies=policies,
            policy_changes=PolicyChanges(policies, sweeping),
            cursors=Cursors(master),
            issuers=issuers,
            issuer_changes=IssuerChanges(issuers, key_sets),
            discovery=discovery,
            key_sets=key_sets,
            diagnosis=Diagnosis(issuers, key_sets, external_tokens, scalekit),
            scalekit=scalekit,
            revoking=Revoking(db, issuers, scalekit),
            owed=owed,
            session_checks=session_checks,
            identities=identities,
            exchange=Exchange(db, external_tokens, identities, sessions, session_checks.absolute_end),
            forgetting=Forgetting(db),
            upstream_sessions=upstream_sessions,
            upstream_logout=UpstreamLogout(db, issuers, external_tokens, ending),
            end_session=EndSession(db, issuers, discovery),
            why=Why(users, reading, Promises(db), events, policies, keys, revocations, federated, db.clock),
            sampling=Sampling(db, revocations, statistics, owed),
        )
    finally:
        await limits.close()
        await revocations.close()
        await db.close()


@asynccontextmanager
async def running(keyturn: Keyturn) -> AsyncIterator[None]:
    """Checks the schema, makes the first keys, and keeps whatever follows the pulse up to date while the block runs.

    Raises:
        ConfigurationError: the schema is behind, the keys were sealed under another secret, no hash fits into the
            memory, or the list of common passwords can't be read.
        TemporarilyUnavailable: the database can't be reached.
    """
    keyturn.passwords.room.require_one()
    await keyturn.password_rules.common.load()
    await check_schema(keyturn.db)
    await keyturn.keys.make_first(by=SERVICE)
    await keyturn.keys.load()
    await keyturn.policies.load()
    await keyturn.issuers.load()

    def follow(reading: PulseReading) -> None:
        keyturn.keys.follow(reading.keys_version, now=reading.now, began=reading.began)
        keyturn.policies.follow(reading.policies_version, began=reading.began)
        keyturn.issuers.follow(reading.issuers_version, began=reading.began)
        with suppress(TemporarilyUnavailable):  # none in force: nothing to discover
            keyturn.discovery.follow(keyturn.issuers.in_force)
            keyturn.key_sets.follow(keyturn.issuers.in_force)

    keyturn.revocations.fence.on_reading = follow
    keyturn.revocations.on_turn = keyturn.sampling.sample
    await keyturn.revocations.fence.read()
    tasks = [asyncio.create_task(keyturn.revocations.watch()), asyncio.create_task(keyturn.revoking.run())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
