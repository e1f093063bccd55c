"""The examinations of `keyturn doctor`: what a start or a request needs, part by part.

Each examination is a function that yields findings. A finding without advice means that the part is in order. An
examination raises the error that a start would raise, so the doctor and the start agree.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import NamedTuple, get_args

from .. import tracing
from ..command_name import called
from ..errors import TemporarilyUnavailable
from ..http import open_files
from ..keyturn import Keyturn
from ..policies.members import shown
from ..revocation.rebuild import CacheState
from ..storage.condition import clock_skew, enforces_foreign_keys, schema_in_use
from ..storage.migrating import migrating
from ..storage.schema import check_schema
from ..tokens.key_set import Use
from ..users.administrators import administrators
from .addresses import listen
from .keys import other_algorithm
from .table import cell
from .users import ran_out

_SOURCES = {"policy": "its row", "settings": "the settings", "default": "Keyturn's defaults"}

_CONNECTIONS = 1000  # a process serves thousands of requests a second; most proxies need a connection for each


class Finding(NamedTuple):
    """One part that the doctor looked at. `advice` says how to mend it, and is empty if nothing is wrong."""

    check: str
    advice: str = ""

    @property
    def away(self) -> bool:
        """Whether a server that Keyturn needs can't be reached."""
        return self.advice.startswith("away")


async def _address(keyturn: Keyturn) -> AsyncIterator[Finding]:
    settings = keyturn.settings
    hosts = (settings.host,) if settings.metrics_port is None else (settings.host, settings.metrics_host)
    for host in hosts:
        for each in listen(host, 0):  # any free port: the service may be running on its own
            each.close()
    yield Finding("address")
    if settings.trusted_proxies:
        yield Finding(f"addresses of clients: by {settings.proxy_field} of the proxies {settings.trusted_proxies}")
    else:
        yield Finding("addresses of clients: those of the connections, as KEYTURN_TRUSTED_PROXIES names no proxy")


async def _traces(keyturn: Keyturn) -> AsyncIterator[Finding]:
    if keyturn.settings.tracing:
        tracing.require()
        yield Finding("traces")


async def _schema(keyturn: Keyturn) -> AsyncIterator[Finding]:
    await check_schema(keyturn.db)
    yield Finding("database and schema")
    if not keyturn.db.is_postgres:
        return
    yield Finding(f"tables in the schema {await schema_in_use(keyturn.db)}")
    # Only a superuser may set this parameter of Postgres, so Keyturn can't set it for its own connections.
    enforced = await enforces_foreign_keys(keyturn.db)
    yield Finding(
        "foreign keys are enforced",
        "" if enforced else "set session_replication_role = origin for this role and database",
    )


async def _migration(keyturn: Keyturn) -> AsyncIterator[Finding]:
    if keyturn.db.is_postgres:
        async with keyturn.db.look() as connection:
            holder = await migrating(connection)
        yield Finding("lock of migrations", f"held by {holder}" if holder else "")


async def _keys(keyturn: Keyturn) -> AsyncIterator[Finding]:
    await keyturn.keys.load()
    keys = await keyturn.keys.list()
    signing = {key["use"] for key in keys if key["status"] == "signs"}
    yield Finding("keys", "" if signing >= set(get_args(Use)) else f"run {called()} serve once to make them")
    for use in get_args(Use):
        # First the key that signs, then the published keys, in the order in which they will sign.
        these = [key for key in keys if key["use"] == use and key["status"] in {"signs", "published"}]
        these.sort(key=lambda key: (key["status"] == "published", key["signs_from"]))
        signers = [
            f"{key['algorithm']} (key {key['kid']})"
            + (f" from {cell(key['signs_from'])} on" if key["status"] == "published" else " now")
            for key in these
        ]
        if these:
            used = "cookies sealed" if use == "cookie" else f"{use} tokens signed"
            yield Finding(
                f"{used} with {', '.join(signers)}", await other_algorithm(keyturn) if use == "access" else ""
            )
    for key in keys:
        if key["status"] == "retiring":
            yield Finding(f"{key['use']} key {key['kid']} ({key['algorithm']}) retires at {cell(key['retires_at'])}")
    if keyturn.settings.secret_previous is not None:
        under = sum(key["sealed_under"] == "previous" for key in keys)
        issuers = sum(issuer.sealed_under == "previous" for issuer in await keyturn.issuers.rows())
        yield Finding(
            f"keys under KEYTURN_SECRET_PREVIOUS ({under})"
            + (f", and secrets of issuers ({issuers})" if issuers else ""),
            f"when every instance has both secrets: {called()} keys rotate master"
            if under or issuers
            else "no longer needed: restart the instances without KEYTURN_SECRET_PREVIOUS",
        )


async def _policies(keyturn: Keyturn) -> AsyncIterator[Finding]:
    await keyturn.policies.load()
    for policy in await keyturn.policies.rows():
        lines = dict[str, list[str]]()
        for name, value in policy.members()["in_force"].items():
            lines.setdefault(policy.source(name), []).append(f"{name} {_text(value)}")
        for source, values in lines.items():
            yield Finding(f"{policy.scope} policy, from {_SOURCES[source]}: {', '.join(values)}")
        for name, value in policy.cut.items():
            yield Finding(
                f"{policy.scope} policy: {name}",
                f"it is set laxer than the settings allow, and counts as {shown(value)}: "
                f"{called()} policies unset {policy.scope} {name}, or set a value that they allow",
            )


async def _issuers(keyturn: Keyturn) -> AsyncIterator[Finding]:
    await keyturn.issuers.load()
    conditions = {each.name: each for each in await keyturn.diagnosis.conditions()}
    for each in await keyturn.issuers.rows():
        where, of = f"issuer {each.name} ({each.source})", each.configured
        add, remove = (f"{called()} federation {verb} {each.name}" for verb in ("add", "remove"))
        if each.status == "hidden":
            yield Finding(
                where, f"the file, or an issuer before it, has its name or its iss, so it is not in force: {remove}"
            )
        elif of is None:
            yield Finding(where, f"this release can't read its row, so it is not in force: {add}, or {remove}")
        elif each.secrets_are_lost:
            yield Finding(where, f"KEYTURN_SECRET does not open its secrets; give them again: {add}")
        else:
            lacks = dict(of.lacks())
            refused = f", without webhook_secret: {lacks['webhook_secret']}" if "webhook_secret" in lacks else ""
            condition = conditions.get(each.name)
            causes = filter(None, (condition.failure, condition.api)) if condition else ()
            away = "; ".join(dict.fromkeys(causes))
            yield Finding(
                f"{where}: {of.issuer.preset}, {of.issuer.issuer}{refused}",
                f"away: {away}; {called()} federation check {each.name}" if away else "",
            )
            if words := lacks.get("client_secret"):
                how = f"{add} --client-secret-stdin" if each.source == "table" else "set it in the file"
                yield Finding(f"client_secret of the issuer {each.name}", f"without it, {words}: {how}")


def _text(value: object) -> str:
    return "any" if value is None else str(value).lower() or "none"


async def _administrators(keyturn: Keyturn) -> AsyncIterator[Finding]:
    found = await administrators(keyturn.db)
    initial = found.with_initial_password
    yield Finding("initial password", f"change it: {called()} users set-password {initial}" if initial else "")
    yield Finding("passwords that Keyturn made", ran_out(found))
    yield Finding("administrator", "" if found.enabled else f"make one: {called()} users create EMAIL --role admin")


async def _hashing(keyturn: Keyturn) -> AsyncIterator[Finding]:
    room = keyturn.passwords.room
    yield Finding(f"password hashes: {room.words}", room.advice)
    count, oldest = await keyturn.sign_in.not_computed()
    advice = f"{count} are not computed, so these users can't sign in: {called()} users set-password {oldest} and so on"
    yield Finding("stored password hashes", advice if count else "")


async def _password_rules(keyturn: Keyturn) -> AsyncIterator[Finding]:
    rules = keyturn.password_rules
    await rules.common.load()
    advice = ""
    try:
        await rules.breached.check()
    except TemporarilyUnavailable as e:
        advice = f"away: {e.cause}; meanwhile new passwords are accepted without it: look at KEYTURN_PASSWORD_RANGE_URL"
    yield Finding(f"new passwords: {rules.words}", advice)


async def _clock(keyturn: Keyturn) -> AsyncIterator[Finding]:
    skew = await clock_skew(keyturn.db)
    yield Finding("clock", "" if skew < timedelta(seconds=2) else "it differs from the database's: let NTP set both")


async def _redis(keyturn: Keyturn) -> AsyncIterator[Finding]:
    await keyturn.revocations.fence.read()
    revocations = keyturn.revocations
    cache = await revocations.ping()
    advice = ""
    try:
        if cache != "none":
            await revocations.redis.send([])
            if refusals := await revocations.redis.refusals():
                cache, advice = "refuses commands", f"{'; '.join(refusals)}: look at KEYTURN_REDIS_URL and its user"
            else:
                if cache in {"complete", "not filled"} and await revocations.is_shared():
                    cache = "shared with another Keyturn"
                advice = _advice(cache)
    except TemporarilyUnavailable as e:
        advice = f"away: {e.cause}; the database answers in its place: start Redis, or look at KEYTURN_REDIS_URL"
    yield Finding(f"cache ({cache})", advice)


def _advice(cache: CacheState) -> str:
    return {
        "may evict": "what may evict keys is never believed, the database answers: set maxmemory-policy noeviction",
        "not identified": "Redis gives no run_id and master_replid in INFO, so it is never believed (is it a proxy?): "
        "set KEYTURN_REDIS_URL to the server itself",
        "another Redis": "the instances use another Redis, or another database of it: "
        "set KEYTURN_REDIS_URL as the instances have it",
        "shared with another Keyturn": "another Keyturn, with another database, uses this database of Redis, so both "
        "fill it in turns and the databases answer: give each its own number in KEYTURN_REDIS_URL (redis://host:6379/1)",
        "not filled": "Redis is not filled yet, and the database answers; an instance fills it within seconds, "
        f"so if one runs, look at its /readyz, else start one: {called()} serve",
    }.get(cache, "")


async def _open_files(_keyturn: Keyturn) -> AsyncIterator[Finding]:
    open_files.raise_limit()  # as a start does
    files = open_files.limit()
    clients = open_files.for_clients(files)
    low = f"raise the limit of open files (ulimit -n): each process serves {clients} connections at once"
    yield Finding(f"open files ({files})", low if clients < _CONNECTIONS else "")


EXAMINATIONS = (
    *(_address, _traces, _schema, _migration, _keys, _policies, _issuers),
    *(_administrators, _hashing, _password_rules, _clock, _redis, _open_files),
)
"""All of them, in the order in which a start would meet what they look at."""
