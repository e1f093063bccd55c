"""The table of issuers: changed in one transaction, followed by every instance, sealed under the master secret."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.actors import SERVICE, Actor
from app.errors import (
    AccessDenied,
    ConfigurationError,
    Conflict,
    InvalidRequest,
    NotFound,
    TemporarilyUnavailable,
)
from app.events.reading import Events
from app.federation import issuer_rows
from app.federation import issuers as module
from app.federation.issuer import Configured, Issuer, IssuerSecrets, issuer_of, secrets_of
from app.federation.issuers import Issuers
from app.keyturn import Keyturn
from app.storage.copies import READ_BY_ALL
from app.storage.tables import Issuer as Row
from app.storage.tables import Pulse
from app.tokens.key_rotation import KeyRotation
from app.tokens.key_seal import KeySeal
from app.tokens.master_secret import master_secret
from tests.conftest import SECRET, Opener, a_user
from tests.test_keys import until

ROOT = Actor("command", "root")
OTHER = "b" + SECRET[1:]
URL = "https://acme.scalekit.dev"
CLIENT_SECRET, WEBHOOK_SECRET = "test_client-secret-0123456789", "whsec_c2VjcmV0IG9mIHRoZSB3ZWJob29rcyAxMjM0NQ=="


def an_issuer(url: str = URL, **members: Any) -> Issuer:
    return issuer_of({"preset": "scalekit", "issuer": url, "client_id": "skc_1", **members})


SECRETS = secrets_of({"client_secret": CLIENT_SECRET, "webhook_secret": WEBHOOK_SECRET})
NONE = IssuerSecrets()


def secret_in(configured: Configured, name: str = "client_secret") -> str | None:
    found = getattr(configured.secrets, name)
    return None if found is None else str(found.get_secret_value())


async def version(keyturn: Keyturn) -> int:
    async with keyturn.db.look() as connection:
        return int(await connection.scalar(select(Pulse.issuers)) or 0)


async def rows(keyturn: Keyturn) -> list[Any]:
    async with keyturn.db.look() as connection:
        return list((await connection.execute(select(Row.__table__).order_by(Row.name))).all())


async def changes(keyturn: Keyturn) -> list[tuple[str, str | None, str | None]]:
    found = await Events(keyturn.db).list(limit=100)
    return [(e["actor"], e["event"], e["detail"]) for e in reversed(found) if e["event"].startswith("issuer_")]


async def planted(keyturn: Keyturn, name: str, **columns: Any) -> None:
    """Writes a row as no act of this release would."""
    row = {"sealed": None, "changed_at": datetime.now(UTC), **columns}
    async with keyturn.db.begin() as tx:
        await tx.execute(insert(Row).values(name=name, **row))
        await tx.execute(update(Pulse).values(issuers=Pulse.issuers + 1))
    await keyturn.issuers.load()


# -- the table


async def test_a_change_writes_the_row_an_event_for_each_member_and_a_new_version(keyturn: Keyturn) -> None:
    before = await version(keyturn)
    issuer = an_issuer(audiences=["one", "two"], roles={"boss": "editor"}, trust_email=True)
    put = await keyturn.issuers.put("acme", issuer, SECRETS, by=ROOT)
    assert (put.name, put.issuer, put.source) == ("acme", issuer, "table")
    assert secret_in(put) == CLIENT_SECRET
    assert await version(keyturn) != before
    assert await changes(keyturn) == [
        ("command", "issuer_changed", f"acme: {detail}")
        for detail in (
            "preset=scalekit",
            f"issuer={URL}",
            "client_id=skc_1",
            "audiences=one,two",
            "trust_email=true",
            "roles=boss=editor",
            "client_secret changed",
            "webhook_secret changed",
        )
    ]
    before = await version(keyturn)
    later = await keyturn.issuers.put("acme", an_issuer(audiences=["one"], trust_email=True), NONE, by=ROOT)
    assert secret_in(later) == CLIENT_SECRET
    assert [detail for *_, detail in await changes(keyturn)][8:] == ["acme: audiences=one", "acme: roles unset"]
    assert await version(keyturn) != before


async def test_a_change_to_what_is_there_leaves_nothing(keyturn: Keyturn) -> None:
    await keyturn.issuers.put("acme", an_issuer(), SECRETS, by=ROOT)
    before = await version(keyturn), await changes(keyturn), await rows(keyturn)
    for secrets in (NONE, SECRETS, secrets_of({"client_secret": CLIENT_SECRET})):
        await keyturn.issuers.put("acme", an_issuer(), secrets, by=ROOT)
    assert (await version(keyturn), await changes(keyturn), await rows(keyturn)) == before


async def test_the_order_of_roles_is_a_change_because_the_first_that_matches_counts(keyturn: Keyturn) -> None:
    roles = {"boss": "editor", "clerk": "reader"}
    for order in (list(roles), list(reversed(roles))):
        given = {theirs: roles[theirs] for theirs in order}
        put = await keyturn.issuers.put("acme", an_issuer(roles=given), NONE, by=ROOT)
        await keyturn.issuers.load()
        assert list(put.issuer.roles) == list(keyturn.issuers.named("acme").issuer.roles) == order
    assert (await changes(keyturn))[-1][2] == "acme: roles=clerk=reader,boss=editor"


async def test_a_removal_leaves_an_event_and_a_new_version_and_nobody_is_removed_twice(keyturn: Keyturn) -> None:
    await keyturn.issuers.put("acme", an_issuer(), SECRETS, by=ROOT)
    before = await version(keyturn)
    await keyturn.issuers.remove("acme", by=ROOT)
    assert await version(keyturn) != before
    assert (await changes(keyturn))[-1] == ("command", "issuer_removed", "acme")
    assert await rows(keyturn) == []
    for name in ("acme", "ACME", "", "never"):
        with pytest.raises(NotFound):
            await keyturn.issuers.remove(name, by=ROOT)
    # Nothing of the former issuer comes back with its name.
    again = await keyturn.issuers.put("acme", an_issuer(), NONE, by=ROOT)
    assert secret_in(again) is None


async def test_a_name_or_an_iss_that_is_another_s_is_refused_and_changes_nothing(keyturn: Keyturn) -> None:
    await keyturn.issuers.put("acme", an_issuer(also_issuers=[f"{URL}/resources/1"]), NONE, by=ROOT)
    before = await version(keyturn), await rows(keyturn)
    for taken in (an_issuer(), an_issuer("https://b.example", also_issuers=[URL]), an_issuer(f"{URL}/resources/1")):
        with pytest.raises(Conflict, match="iss of another"):
            await keyturn.issuers.put("other", taken, NONE, by=ROOT)
    for name in ("", "Acme", "1", "a" * 33, "a/b", "ä", "acme\n"):
        with pytest.raises(InvalidRequest):
            await keyturn.issuers.put(name, an_issuer("https://c.example"), NONE, by=ROOT)
    assert (await version(keyturn), await rows(keyturn)) == before


async def test_of_two_who_add_the_same_iss_at_once_one_is_refused(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        for turn in range(5):
            outcomes = await asyncio.gather(
                one.issuers.put(f"a-{turn}", an_issuer(f"{URL}/{turn}"), NONE, by=ROOT),
                two.issuers.put(f"b-{turn}", an_issuer(f"{URL}/{turn}"), NONE, by=ROOT),
                return_exceptions=True,
            )
            assert sorted(isinstance(each, Conflict) for each in outcomes) == [False, True], outcomes
        assert len({each.configured.issuer.issuer for each in await one.issuers.rows() if each.configured}) == 5


async def test_the_table_has_an_end(keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ISSUERS", 2)
    for name in ("a", "b"):
        await keyturn.issuers.put(name, an_issuer(f"{URL}/{name}"), NONE, by=ROOT)
    with pytest.raises(Conflict, match="too many"):
        await keyturn.issuers.put("c", an_issuer(f"{URL}/c"), NONE, by=ROOT)
    await keyturn.issuers.put("b", an_issuer(f"{URL}/other"), NONE, by=ROOT)


async def test_a_change_that_was_prepared_for_another_state_is_refused(keyturn: Keyturn) -> None:
    seen = await keyturn.issuers.put("acme", an_issuer(), NONE, by=ROOT)
    newer = await keyturn.issuers.put("acme", an_issuer(trust_email=True), NONE, by=ROOT)
    with pytest.raises(Conflict, match="changed meanwhile"):
        await keyturn.issuers.put("acme", an_issuer(create_users=False), NONE, by=ROOT, seen=seen)
    await keyturn.issuers.put("acme", an_issuer(create_users=False), NONE, by=ROOT, seen=newer)
    await keyturn.issuers.remove("acme", by=ROOT)
    with pytest.raises(Conflict, match="changed meanwhile"):
        await keyturn.issuers.put("acme", an_issuer(), NONE, by=ROOT, seen=newer)


async def test_an_administrator_who_was_demoted_before_the_transaction_changes_nothing(keyturn: Keyturn) -> None:
    await a_user(keyturn, "boss@example.com", "admin")
    proof = await a_user(keyturn, "demoted@example.com", "admin")
    await keyturn.issuers.put("acme", an_issuer(), NONE, by=ROOT)
    await keyturn.users.set_role(proof.user_id, "user", by=SERVICE)
    demoted = Actor("administrator", str(proof.user_id))
    before = await rows(keyturn)
    with pytest.raises(AccessDenied):
        await keyturn.issuers.put("acme", an_issuer(trust_email=True), NONE, by=demoted)
    with pytest.raises(AccessDenied):
        await keyturn.issuers.remove("acme", by=demoted)
    assert await rows(keyturn) == before


# -- the secrets


async def test_a_secret_stays_unless_it_is_named_and_goes_with_null(keyturn: Keyturn) -> None:
    await keyturn.issuers.put("acme", an_issuer(), SECRETS, by=ROOT)
    for given, left in (
        ({}, (CLIENT_SECRET, WEBHOOK_SECRET)),
        ({"client_secret": "another"}, ("another", WEBHOOK_SECRET)),
        ({"webhook_secret": None}, ("another", None)),
        ({"client_secret": None}, (None, None)),
    ):
        put = await keyturn.issuers.put("acme", an_issuer(), secrets_of(given), by=ROOT)
        await keyturn.issuers.load()
        held = keyturn.issuers.named("acme")
        for each in (put, held):
            assert (secret_in(each), secret_in(each, "webhook_secret")) == left
    assert (await rows(keyturn))[0].sealed is None


async def test_a_client_secret_never_goes_to_another_host_than_it_was_given_for(keyturn: Keyturn) -> None:
    await keyturn.issuers.put("acme", an_issuer(), SECRETS, by=ROOT)
    elsewhere = an_issuer("https://evil.example")
    for given in (NONE, secrets_of({"webhook_secret": None})):
        with pytest.raises(InvalidRequest) as refused:
            await keyturn.issuers.put("acme", elsewhere, given, by=ROOT)
        assert refused.value.description.startswith("client_secret: ")
    put = await keyturn.issuers.put("acme", elsewhere, secrets_of({"client_secret": "new"}), by=ROOT)
    assert (secret_in(put), secret_in(put, "webhook_secret")) == ("new", WEBHOOK_SECRET)


async def test_no_row_event_log_or_repr_has_a_secret(keyturn: Keyturn, caplog: pytest.LogCaptureFixture) -> None:
    put = await keyturn.issuers.put("acme", an_issuer(), SECRETS, by=ROOT)
    await keyturn.issuers.load()
    row = (await rows(keyturn))[0]
    listed = await keyturn.issuers.rows()
    events = await Events(keyturn.db).list(limit=100)
    for shown in (
        repr(row),
        row.sealed.decode("latin-1"),
        repr(listed),
        str(listed[0].members()),
        repr(put),
        str(events),
    ):
        assert CLIENT_SECRET not in shown
        assert WEBHOOK_SECRET not in shown
    assert CLIENT_SECRET not in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"configuration": '{"preset":"scalekit","issuer":"https://evil.example","client_id":"skc_1"}'},
        {"name": "moved"},
        {"sealed": bytes(60)},
        {"sealed": b""},
    ],
    ids=["another host", "another name", "other bytes", "no bytes"],
)
async def test_a_secret_opens_only_in_its_own_row(keyturn: Keyturn, change: dict[str, Any]) -> None:
    """Whoever can write to the table, and has not got the master secret, gets no secret sent elsewhere."""
    await keyturn.issuers.put("acme", an_issuer(), SECRETS, by=ROOT)
    async with keyturn.db.begin() as tx:
        await tx.execute(update(Row).values(**change))
    (listed,) = await keyturn.issuers.rows()
    assert listed.secrets_are_lost
    assert listed.configured is not None
    assert listed.configured.secrets == NONE
    await keyturn.issuers.load()
    assert keyturn.issuers.named(change.get("name", "acme")).secrets == NONE


def test_no_row_of_a_key_opens_as_one_of_an_issuer_and_the_reverse() -> None:
    class Both:
        kid = name = "x"
        use, algorithm, number, configuration = "access", "HS256", None, "{}"
        sealed = b""

    seal, row = KeySeal(master_secret(SECRET)), Both()
    row.sealed = seal.seal_secrets(b"secret", "x", "{}")
    assert seal.open_secrets(row) == ("current", b"secret")
    assert seal.sealed_under(row) is None
    row.sealed = seal.seal(b"secret", "x", "access", "HS256", None)
    assert seal.open(row) == b"secret"
    assert seal.open_secrets(row) is None


# -- the master secret


async def sealed_under(keyturn: Keyturn) -> dict[str, str | None]:
    return {each.name: each.sealed_under for each in await keyturn.issuers.rows()}


async def test_a_rewrap_moves_the_secrets_of_issuers_with_the_keys(open_keyturn: Opener) -> None:
    async with open_keyturn() as old, open_keyturn(secret=OTHER, secret_previous=SECRET) as new:
        await old.issuers.put("acme", an_issuer(), SECRETS, by=ROOT)
        await old.issuers.put("bare", an_issuer(f"{URL}/bare"), NONE, by=ROOT)
        assert await sealed_under(new) == {"acme": "previous", "bare": None}
        await new.issuers.load()
        assert secret_in(new.issuers.named("acme")) == CLIENT_SECRET
        assert await new.key_rotation.rewrap(by=SERVICE) == 4  # three keys and an issuer
        assert await sealed_under(new) == {"acme": "current", "bare": None}
        assert await new.key_rotation.rewrap(by=SERVICE) == 0
        # Old instances know that they can't read the secrets, and keep a change from losing them.
        (listed, _) = await old.issuers.rows()
        assert (listed.status, listed.secrets_are_lost) == ("in_force", True)
        with pytest.raises(Conflict, match="can't be read"):
            await old.issuers.put("acme", an_issuer(trust_email=True), NONE, by=ROOT)
    async with open_keyturn(secret=OTHER) as later:
        assert secret_in(later.issuers.named("acme")) == CLIENT_SECRET


async def test_a_rewrap_that_meets_secrets_which_it_can_not_open_changes_nothing(open_keyturn: Opener) -> None:
    async with open_keyturn() as old:
        await old.issuers.put("acme", an_issuer(), SECRETS, by=ROOT)
    async with open_keyturn(secret=OTHER, secret_previous=SECRET) as both:
        async with both.db.begin() as tx:
            await tx.execute(update(Row).values(sealed=bytes(60)))
        with pytest.raises(ConfigurationError, match="secrets of the issuer acme"):
            await both.key_rotation.rewrap(by=SERVICE)
        assert {key["sealed_under"] for key in await both.keys.list()} == {"previous"}
        # The way out: the secrets are given again, or forgotten.
        await both.issuers.put("acme", an_issuer(), secrets_of(dict.fromkeys(IssuerSecrets.model_fields)), by=ROOT)
        assert (await changes(both))[-1][2] == "acme: lost secrets removed"
        assert await both.key_rotation.rewrap(by=SERVICE) == 3


async def test_a_change_and_a_rewrap_at_once_leave_no_secret_under_the_old_master_secret(open_keyturn: Opener) -> None:
    both = {"secret": OTHER, "secret_previous": SECRET}
    async with open_keyturn() as old:
        await old.issuers.put("acme", an_issuer(), SECRETS, by=ROOT)
    async with open_keyturn(**both) as one, open_keyturn(**both) as two:
        for turn in range(8):
            secrets = secrets_of({"client_secret": f"secret-{turn}"})
            await asyncio.gather(
                one.key_rotation.rewrap(by=SERVICE),
                two.issuers.put("acme", an_issuer(), secrets, by=ROOT),
            )
            await one.issuers.load()
            assert secret_in(one.issuers.named("acme")) == f"secret-{turn}"
        assert await sealed_under(one) == {"acme": "current"}


# -- what is in force


async def test_issuers_are_found_by_their_name_and_by_each_exact_iss(keyturn: Keyturn) -> None:
    assert dict(keyturn.issuers.in_force) == {}
    assert keyturn.issuers.of(URL) is None
    await keyturn.issuers.put("acme", an_issuer(also_issuers=[f"{URL}/resources/1"]), NONE, by=ROOT)
    await keyturn.issuers.load()
    acme = keyturn.issuers.named("acme")
    assert keyturn.issuers.of(URL) is keyturn.issuers.of(f"{URL}/resources/1") is acme
    for other in (f"{URL}/", URL.upper(), f"{URL}/resources/2", "", "acme"):
        assert keyturn.issuers.of(other) is None
    with pytest.raises(NotFound):
        keyturn.issuers.named("other")
    with pytest.raises(TypeError):
        keyturn.issuers.in_force["evil"] = acme  # type: ignore[index]
    # What has not changed stays the same object, so that what hangs on it stays too.
    await keyturn.issuers.load()
    assert keyturn.issuers.named("acme") is acme


@pytest.mark.parametrize(
    "configuration",
    ["", "{", "[]", "null", '{"preset":"saml","issuer":"https://x.example","client_id":"x"}',
     '{"preset":"oidc","issuer":"https://x.example","client_id":"x","of_a_later_release":true}'],
)  # fmt: skip
async def test_a_row_that_this_release_can_not_read_is_listed_and_takes_no_other_issuer_out_of_force(
    keyturn: Keyturn, configuration: str
) -> None:
    await keyturn.issuers.put("acme", an_issuer(), NONE, by=ROOT)
    await planted(keyturn, "later", configuration=configuration)
    assert set(keyturn.issuers.in_force) == {"acme"}
    assert [(each.name, each.status) for each in await keyturn.issuers.rows()] == [
        ("acme", "in_force"),
        ("later", "unreadable"),
    ]
    # An administrator may replace it, or remove it.
    await keyturn.issuers.put("later", an_issuer(f"{URL}/later"), NONE, by=ROOT)
    await keyturn.issuers.load()
    assert set(keyturn.issuers.in_force) == {"acme", "later"}


async def test_of_two_rows_with_one_iss_the_second_is_hidden(keyturn: Keyturn) -> None:
    await keyturn.issuers.put("b", an_issuer(), NONE, by=ROOT)
    configuration = json.dumps(
        {"preset": "oidc", "issuer": "https://a.example", "also_issuers": [URL], "client_id": "x"}
    )
    await planted(keyturn, "c", configuration=configuration)
    assert set(keyturn.issuers.in_force) == {"b"}
    assert {each.name: each.status for each in await keyturn.issuers.rows()} == {"b": "in_force", "c": "hidden"}
    assert keyturn.issuers.of("https://a.example") is None


async def test_an_issuer_of_the_file_wins_over_the_table_s_and_no_command_changes_it(
    open_keyturn: Opener, tmp_path: Path
) -> None:
    file = tmp_path / "issuers.toml"
    of_file = 'preset = "scalekit"\nclient_id = "of-the-file"\n'
    file.write_text(f'[issuers.acme]\nissuer = "{URL}"\n{of_file}[issuers.new]\nissuer = "{URL}/new"\n{of_file}')
    async with open_keyturn() as without:
        await without.issuers.put("acme", an_issuer(f"{URL}/table"), SECRETS, by=ROOT)
        await without.issuers.put("same-iss", an_issuer(f"{URL}/new"), NONE, by=ROOT)
        async with open_keyturn(federation_file=file) as keyturn:
            assert {name: each.source for name, each in keyturn.issuers.in_force.items()} == {
                "acme": "file",
                "new": "file",
            }
            assert keyturn.issuers.named("acme").issuer.client_id == "of-the-file"
            assert keyturn.issuers.of(f"{URL}/table") is None
            assert [(each.name, each.source, each.status) for each in await keyturn.issuers.rows()] == [
                ("acme", "file", "in_force"),
                ("new", "file", "in_force"),
                ("acme", "table", "hidden"),
                ("same-iss", "table", "hidden"),
            ]
            before = await rows(keyturn)
            for name in ("acme", "new"):
                with pytest.raises(Conflict, match="in the file"):
                    await keyturn.issuers.put(name, an_issuer(f"{URL}/x"), NONE, by=ROOT)
            with pytest.raises(Conflict, match="in the file"):
                await keyturn.issuers.remove("new", by=ROOT)
            with pytest.raises(Conflict, match="iss of another"):
                await keyturn.issuers.put("third", an_issuer(URL), NONE, by=ROOT)
            assert await rows(keyturn) == before
            # The row that nobody uses may go. The file's stays.
            await keyturn.issuers.remove("acme", by=ROOT)
            await keyturn.issuers.load()
            assert keyturn.issuers.named("acme").source == "file"


# -- the pulse


async def test_a_change_is_in_force_on_each_instance_within_a_second(open_keyturn: Opener) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        for turn in range(3):
            url = f"{URL}/{turn}"
            secrets = secrets_of({"client_secret": f"secret-{turn}"})
            await one.issuers.put("acme", an_issuer(url), secrets, by=ROOT)
            for each in (one, two):
                await until(lambda: each.issuers.of(url) is not None, READ_BY_ALL.total_seconds())  # noqa: B023  # called at once
                assert secret_in(each.issuers.named("acme")) == f"secret-{turn}"
        await two.issuers.remove("acme", by=ROOT)
        for each in (one, two):
            await until(lambda: not each.issuers.in_force, READ_BY_ALL.total_seconds())  # noqa: B023  # called at once


@asynccontextmanager
async def away() -> AsyncIterator[AsyncConnection]:
    raise TemporarilyUnavailable("away")
    yield


async def test_an_instance_that_missed_the_pulse_has_the_issuers_as_soon_as_the_database_is_back(
    open_keyturn: Opener,
) -> None:
    async with open_keyturn() as one, open_keyturn() as two:
        await until(two.revocations.fence.database_answers)
        working, two.db.watch_connection = two.db.watch_connection, away  # type: ignore[method-assign]  # an outage
        await until(lambda: not two.revocations.fence.database_answers())
        await one.issuers.put("acme", an_issuer(), NONE, by=ROOT)
        assert dict(two.issuers.in_force) == {}
        two.db.watch_connection = working  # type: ignore[method-assign]  # the outage is over
        await until(lambda: "acme" in two.issuers.in_force)


class Followed(Issuers):
    """Counts the loads of the table, and lets them fail."""

    loads = 0
    fails: Exception | None = None

    async def load(self) -> None:
        self.loads += 1
        if self.fails:
            raise self.fails
        await super().load()


def followed(keyturn: Keyturn) -> Followed:
    return Followed(keyturn.db, KeySeal(master_secret(SECRET)), keyturn.settings)


async def test_the_table_is_read_where_its_version_changed_and_now_and_then(keyturn: Keyturn) -> None:
    issuers = followed(keyturn)
    with pytest.raises(TemporarilyUnavailable):
        _ = issuers.in_force
    await issuers.load()
    known = await version(keyturn)
    for _ in range(3):
        issuers.follow(known, began=monotonic())
        await asyncio.sleep(0.01)
    assert issuers.loads == 1
    issuers.follow(known, began=monotonic() + 301)  # a second line of defence
    await until(lambda: issuers.loads == 2)
    await keyturn.issuers.put("acme", an_issuer(), NONE, by=ROOT)
    issuers.follow(await version(keyturn), began=monotonic())
    await until(lambda: "acme" in issuers.in_force)


async def test_an_instance_that_knows_that_its_issuers_are_old_and_can_not_read_the_new_ones_goes_by_none(
    keyturn: Keyturn,
) -> None:
    """An issuer that was removed vouches for nobody."""
    await keyturn.issuers.put("acme", an_issuer(), NONE, by=ROOT)
    issuers = followed(keyturn)
    await issuers.load()
    await keyturn.issuers.remove("acme", by=ROOT)
    newer = await version(keyturn)
    issuers.fails = RuntimeError("the table can't be read")
    now = monotonic()
    issuers.follow(newer, began=now)
    assert "acme" in issuers.in_force
    issuers.follow(newer, began=now + READ_BY_ALL.total_seconds() + 0.1)
    for use in (lambda: issuers.in_force, lambda: issuers.of(URL), lambda: issuers.named("acme")):
        with pytest.raises(TemporarilyUnavailable):
            use()
    issuers.fails = None
    await asyncio.sleep(0.01)
    issuers.follow(newer, began=now + 3)
    await until(lambda: issuers._in_force is not None)
    assert dict(issuers.in_force) == {}


async def test_an_issuer_that_is_not_as_stored_is_logged_once(
    keyturn: Keyturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[str, str, str]] = []
    monkeypatch.setattr(module._log, "warning", lambda event, issuer, cause: lines.append((event, issuer, cause)))
    await keyturn.issuers.put("acme", an_issuer(), SECRETS, by=ROOT)
    await planted(keyturn, "later", configuration="{}")
    async with keyturn.db.begin() as tx:
        await tx.execute(update(Row).where(Row.name == "acme").values(sealed=bytes(60)))
    for _ in range(3):
        await keyturn.issuers.load()
        keyturn.issuers.follow(await version(keyturn), began=monotonic())
    assert sorted(lines) == [
        ("issuer_not_as_stored", "acme", "secrets are lost"),
        ("issuer_not_as_stored", "later", "unreadable"),
    ]


async def test_no_refresh_and_no_verification_waits_for_the_issuers(keyturn: Keyturn) -> None:
    keyturn.issuers._in_force = None
    tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
    tokens = await keyturn.rotation.refresh(tokens.refresh_token, by=SERVICE)
    await keyturn.reading.verify(tokens.access_token)


# -- planted bugs: each is found by the test that is named with it

Patch = pytest.MonkeyPatch


def version_stays(patch: Patch) -> None:
    """A change that writes no new version. Other instances would learn of it after five minutes."""
    patch.setattr(module, "random", type("Fixed", (), {"randbits": staticmethod(lambda _: 0)}))


def rewrap_forgets_issuers(patch: Patch) -> None:
    async def forgets(self: KeyRotation, tx: AsyncConnection) -> int:
        return 0

    patch.setattr(KeyRotation, "_rewrap_issuers", forgets)


def table_wins(patch: Patch) -> None:
    """The row of a name is in force, and not the file's."""
    real = issuer_rows.listed
    patch.setattr(module, "listed", lambda rows, of_file, seal: [*real(rows, {}, seal), *real((), of_file, seal)])


def secret_follows_the_host(patch: Patch) -> None:
    patch.setattr(
        "app.federation.issuer_rows.Listed.kept",
        lambda self, issuer, given: self.configured.secrets if self.configured else IssuerSecrets(),
    )


def seal_knows_no_row(patch: Patch) -> None:
    patch.setattr("app.tokens.key_seal._issuer_beside", lambda name, configuration: b"")


def nobody_looks_again(patch: Patch) -> None:
    async def looks_not(tx: AsyncConnection, by: Actor) -> None:
        pass

    patch.setattr(module, "check_still", looks_not)


@pytest.mark.parametrize(
    ("plant", "finds", "more"),
    [
        (version_stays, test_a_change_is_in_force_on_each_instance_within_a_second, ()),
        (rewrap_forgets_issuers, test_a_rewrap_moves_the_secrets_of_issuers_with_the_keys, ()),
        (table_wins, test_an_issuer_of_the_file_wins_over_the_table_s_and_no_command_changes_it, ("tmp_path",)),
        (secret_follows_the_host, test_a_client_secret_never_goes_to_another_host_than_it_was_given_for, ("keyturn",)),
        (seal_knows_no_row, test_a_secret_opens_only_in_its_own_row, ("keyturn", {"name": "moved"})),
        (
            nobody_looks_again,
            test_an_administrator_who_was_demoted_before_the_transaction_changes_nothing,
            ("keyturn",),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", "")[:30],
)
@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_planted_bug_is_found(
    plant: Callable[[Patch], None],
    finds: Callable[..., Any],
    more: tuple[Any, ...],
    open_keyturn: Opener,
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    async def found() -> None:
        if more[:1] == ("keyturn",):
            async with open_keyturn() as keyturn:
                await finds(keyturn, *more[1:])
        else:
            await finds(open_keyturn, *([tmp_path] if more else []))

    plant(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)):
        await found()
