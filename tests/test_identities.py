"""Which user a subject of an issuer is: found by the identity, linked by a proved address, made, or shut out."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, update

from app.actors import SERVICE, Actor
from app.errors import AccessDenied, Conflict, InvalidGrant, NotFound, TemporarilyUnavailable, UnacceptableToken
from app.federation.identities import MOST
from app.keyturn import Keyturn
from app.storage.tables import Event, Identity, Session, TakenToken, UpstreamSession, User, uuid7
from tests.conftest import NEW_PASSWORD, PASSWORD, Opener, a_user
from tests.federated import ANOTHER, BY, CALLER, count, exchanged, federated, file_of, rows, the_user, told
from tests.upstream.upstream import Upstream

ADA = "ada@example.com"


async def linked(keyturn: Keyturn, user_id: UUID, token: str, by: Actor = BY) -> Any:
    return await keyturn.exchange.link(token, None, user_id, by=by._replace(kind="user", id=str(user_id)))


async def verified(keyturn: Keyturn, user_id: UUID) -> None:
    await keyturn.users.set_email_verified(user_id, verified=True, by=SERVICE)


# -- made


async def test_the_same_subject_is_one_user_whatever_session_kind_or_address_its_tokens_have(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, trust_email=True) as keyturn:
        for token in (
            upstream.mint(),
            upstream.mint(sid="ses_1"),
            upstream.mint("id_token"),
            upstream.mint("id_token", email="new@example.com"),
            upstream.mint(sid="ses_2"),  # has no address, and takes none away
        ):
            await exchanged(keyturn, token)
        assert await count(keyturn, User) == await count(keyturn, Identity) == 1
        [identity] = await rows(keyturn, Identity)
        assert identity.email == "new@example.com", "as the issuer said it last"
        assert identity.last_used_at > identity.created_at
        [user] = await rows(keyturn, User)
        assert user.email is None, "the address of an account is no business of later exchanges"


async def test_the_same_subject_at_two_issuers_is_two_users(
    open_keyturn: Opener, upstream: Upstream, second_upstream: Upstream, tmp_path: Path
) -> None:
    path = Path(file_of(upstream, tmp_path, trust_email=True))
    path.write_text(path.read_text() + second_upstream.toml("other", trust_email=True))
    async with open_keyturn(federation_file=str(path)) as keyturn:
        first = await the_user(keyturn, await exchanged(keyturn, upstream.mint("id_token")))
        second = await the_user(keyturn, await exchanged(keyturn, second_upstream.mint("id_token")))
        assert first.id != second.id
        assert (first.email, second.email) == (ADA, None), "an address is one user's alone"


async def test_another_name_or_a_further_iss_of_an_issuer_changes_nobody_s_account_and_makes_no_token_count_again(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    before = upstream.mint()
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        user = await the_user(keyturn, await exchanged(keyturn, before))
    also = f"{upstream.url}/resources/res_1"
    async with federated(open_keyturn, upstream, tmp_path, name="renamed", also_issuers=[also]) as keyturn:
        with pytest.raises(UnacceptableToken):
            await exchanged(keyturn, before, caller=ANOTHER)
        for token in (upstream.mint(), upstream.mint(iss=also)):
            assert (await the_user(keyturn, await exchanged(keyturn, token))).id == user.id


async def test_an_issuer_that_may_not_make_users_signs_in_only_those_who_are_linked(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, create_users=False) as keyturn:
        with pytest.raises(UnacceptableToken) as e:
            await exchanged(keyturn, upstream.mint())
        assert e.value.cause == "unknown_user"
        assert await count(keyturn, User) == 0
        user_id = (await a_user(keyturn)).user_id
        await linked(keyturn, user_id, upstream.mint())
        assert (await the_user(keyturn, await exchanged(keyturn, upstream.mint()))).id == user_id


# -- e-mail addresses


async def test_a_new_user_gets_an_address_only_from_a_trusted_issuer_that_says_it_is_verified(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, name="wary") as keyturn:
        user = await the_user(keyturn, await exchanged(keyturn, upstream.mint("id_token")))
        assert (user.email, user.email_verified_at) == (None, None)
    async with federated(open_keyturn, upstream, tmp_path, name="trusting", trust_email=True) as keyturn:
        members: list[dict[str, Any]] = [{"email_verified": False}, {"email_verified": ...}, {"email": "no address"}]
        for number, member in enumerate(members):
            token = upstream.mint("id_token", subject=upstream.other(number), **member)
            user = await the_user(keyturn, await exchanged(keyturn, token))
            assert (user.email, user.email_verified_at) == (None, None), member
        token = upstream.mint("id_token", subject=upstream.other(9), email="Ada@Example.COM")
        user = await the_user(keyturn, await exchanged(keyturn, token))
        assert user.email == ADA
        assert user.email_verified_at == user.created_at


async def test_without_linking_a_new_user_whose_address_is_taken_gets_none_and_the_other_keeps_the_account(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, trust_email=True) as keyturn:
        owner = (await a_user(keyturn)).user_id
        await verified(keyturn, owner)
        user = await the_user(keyturn, await exchanged(keyturn, upstream.mint("id_token")))
        assert user.id != owner
        assert user.email is None
        assert await rows(keyturn, Identity, user_id=owner) == []


async def test_with_linking_a_proved_address_leads_to_the_user_with_the_same_proved_address(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, trust_email=True, link_by_email=True) as keyturn:
        owner = (await a_user(keyturn)).user_id
        await verified(keyturn, owner)
        tokens = await exchanged(keyturn, upstream.mint("id_token"))
        assert (await the_user(keyturn, tokens)).id == owner
        assert ("identity_linked", "upstream", "acme", "acme") in await told(keyturn, owner)
        assert (await keyturn.sign_in.authenticate(ADA, PASSWORD)).user_id == owner, "the password stays"
        # From now on the identity leads there, whatever its address.
        moved = upstream.mint("id_token", email="elsewhere@example.com")
        assert (await the_user(keyturn, await exchanged(keyturn, moved))).id == owner


@pytest.mark.parametrize("obstacle", ["not proved here", "not proved there", "an administrator", "an access token"])
async def test_linking_by_address_needs_both_proved_and_never_leads_to_an_administrator(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path, obstacle: str
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, trust_email=True, link_by_email=True) as keyturn:
        owner = (await a_user(keyturn, role="admin" if obstacle == "an administrator" else "user")).user_id
        if obstacle != "not proved here":
            await verified(keyturn, owner)
        token = upstream.mint("id_token", email_verified=obstacle != "not proved there")
        if obstacle == "an access token":
            token = upstream.mint(email=ADA, email_verified=True)
        user = await the_user(keyturn, await exchanged(keyturn, token))
        assert user.id != owner
        assert user.email is None
        assert user.role == "user"
        assert await rows(keyturn, Identity, user_id=owner) == []


async def test_an_operator_who_takes_the_word_back_ends_linking_by_that_address(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, trust_email=True, link_by_email=True) as keyturn:
        owner = (await a_user(keyturn)).user_id
        await verified(keyturn, owner)
        await verified(keyturn, owner)
        await keyturn.users.set_email_verified(owner, verified=False, by=SERVICE)
        user = await the_user(keyturn, await exchanged(keyturn, upstream.mint("id_token")))
        assert user.id != owner
        events = [(event, detail) for event, _, _, detail in await told(keyturn, owner) if event == "email_verified"]
        assert events == [("email_verified", None), ("email_verified", "withdrawn")]


# -- shut out


async def test_a_disabled_user_is_refused_and_not_made_anew(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        user = await the_user(keyturn, await exchanged(keyturn, upstream.mint()))
        await keyturn.users.disable(user.id, by=SERVICE)
        for token in (upstream.mint(), upstream.mint("id_token")):
            with pytest.raises(UnacceptableToken) as e:
                await exchanged(keyturn, token)
            assert (e.value.cause, e.value.reason) == ("user_disabled", "user_disabled")
        assert await count(keyturn, User) == await count(keyturn, Session) == 1
        await keyturn.users.enable(user.id, by=SERVICE)
        await exchanged(keyturn, upstream.mint())


@pytest.mark.parametrize("link", [True, False])
async def test_whoever_proves_the_address_of_a_disabled_user_is_refused_too(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path, link: bool
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, trust_email=True, link_by_email=link) as keyturn:
        owner = (await a_user(keyturn)).user_id
        await verified(keyturn, owner)
        await keyturn.users.disable(owner, by=SERVICE)
        with pytest.raises(UnacceptableToken) as e:
            await exchanged(keyturn, upstream.mint("id_token"))
        assert e.value.reason == "user_disabled"
        assert await count(keyturn, User) == 1
        assert await count(keyturn, Identity) == 0


async def test_an_erased_user_leaves_no_identity_and_nothing_personal_at_the_upstream_session(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, trust_email=True) as keyturn:
        tokens = await exchanged(keyturn, upstream.mint("id_token"), device_id="d1")
        user = await the_user(keyturn, tokens)
        await keyturn.erasing.erase(user.id, by=SERVICE)
        assert await count(keyturn, Identity) == await count(keyturn, User) == 0
        [its] = await rows(keyturn, UpstreamSession)
        assert (its.identity_id, its.upstream_id) == (None, upstream.subject.session_id), "it may have to be revoked"
        for table in (UpstreamSession, TakenToken, Session, Event):
            for row in await rows(keyturn, table):
                for personal in (str(user.id), user.id.hex, upstream.subject.user_id, ADA):
                    assert personal not in repr(tuple(row)), table
        again = await the_user(keyturn, await exchanged(keyturn, upstream.mint("id_token", sid="ses_2")))
        assert again.id != user.id


# -- roles and claims


async def test_roles_and_claims_are_mapped_anew_at_each_exchange_and_reach_live_sessions(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    tables = {"roles": {"boss": "editor", "orders:write": "clerk"}, "claims": {"oid": "org"}}
    async with federated(open_keyturn, upstream, tmp_path, **tables) as keyturn:
        first = await exchanged(keyturn, upstream.mint(roles=["boss"], oid="org_1"))
        user = await the_user(keyturn, first)
        assert (user.role, json.loads(user.claims)) == ("editor", {"org": "org_1"})
        token = await keyturn.reading.verify(first.access_token)
        assert (token.role, token.claims["org"]) == ("editor", "org_1")

        await exchanged(keyturn, upstream.mint(permissions=["orders:write"], oid="org_2"))
        user = await the_user(keyturn, first)
        assert (user.role, json.loads(user.claims)) == ("clerk", {"org": "org_2"})
        refreshed = await keyturn.reading.verify(
            (await keyturn.rotation.refresh(first.refresh_token, by=BY)).access_token
        )
        assert (refreshed.role, refreshed.claims["org"]) == ("clerk", "org_2")

        await exchanged(keyturn, upstream.mint(roles=["stranger"], oid=...))
        user = await the_user(keyturn, first)
        assert (user.role, user.claims) == ("user", None), "a right that the issuer took away is gone"
        changes = [each for each in await told(keyturn, user.id) if each[0].endswith("_changed")]
        assert changes == [
            ("role_changed", "upstream", "acme", "clerk"),
            ("claims_changed", "upstream", "acme", None),
            ("role_changed", "upstream", "acme", "user"),
            ("claims_changed", "upstream", "acme", None),
        ]


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_an_exchange_that_changes_no_role_waits_for_no_administrator_s_row(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, roles={"boss": "editor"}, claims={"oid": "org"}) as keyturn:
        tokens = await exchanged(keyturn, upstream.mint(roles=["boss"], oid="org_1"))
        root = await keyturn.users.create("root@example.com", PASSWORD, "admin", by=SERVICE)
        async with keyturn.db.begin() as tx:
            await tx.execute(select(User.id).where(User.id == root.id).with_for_update())
            await exchanged(keyturn, upstream.mint(roles=["boss"], oid="org_2"))
            assert json.loads((await the_user(keyturn, tokens)).claims) == {"org": "org_2"}
            with pytest.raises(TemporarilyUnavailable):  # the row is locked indeed
                await exchanged(keyturn, upstream.mint(roles=[], oid="org_2"))


async def test_an_exchange_that_maps_to_what_is_there_writes_no_event(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, roles={"boss": "editor"}, claims={"oid": "org"}) as keyturn:
        user = await the_user(keyturn, await exchanged(keyturn, upstream.mint(roles=["boss"])))
        await keyturn.users.set_claims(user.id, {"org": upstream.subject.organization_id, "plan": "gold"}, by=SERVICE)
        before = [each for each in await told(keyturn, user.id) if each[0].endswith("_changed")]
        for _ in range(2):
            await exchanged(keyturn, upstream.mint(roles=["boss"]))
        assert [each for each in await told(keyturn, user.id) if each[0].endswith("_changed")] == before


async def test_an_issuer_without_tables_leaves_role_and_claims_as_an_operator_set_them(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        user = await the_user(keyturn, await exchanged(keyturn, upstream.mint(roles=["admin"])))
        assert user.role == "user", "a role of the same name there means nothing here"
        await keyturn.users.set_role(user.id, "editor", by=SERVICE)
        await keyturn.users.set_claims(user.id, {"plan": "gold"}, by=SERVICE)
        tokens = await exchanged(keyturn, upstream.mint(roles=["admin"], plan="none"))
        token = await keyturn.reading.verify(tokens.access_token)
        assert (token.role, token.claims["plan"]) == ("editor", "gold")


async def test_an_issuer_decides_about_the_claims_of_its_table_and_about_no_others(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, claims={"oid": "org"}) as keyturn:
        user = await the_user(keyturn, await exchanged(keyturn, upstream.mint(oid="org_1")))
        await keyturn.users.set_claims(user.id, {"org": "planted", "plan": "gold"}, by=SERVICE)
        await exchanged(keyturn, upstream.mint(oid="org_2", plan="none", org="none"))
        [user] = await rows(keyturn, User)
        assert json.loads(user.claims) == {"plan": "gold", "org": "org_2"}


async def test_the_administrator_s_role_comes_by_an_explicit_line_alone_and_the_last_one_stays(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    members: dict[str, Any] = {"roles": {"root": "admin"}, "claims": {"oid": "org"}}
    members["organizations"] = [upstream.subject.organization_id, "org_2"]
    async with federated(open_keyturn, upstream, tmp_path, **members) as keyturn:
        user = await the_user(keyturn, await exchanged(keyturn, upstream.mint(roles=["admin"])))
        assert user.role == "user"
        first = await exchanged(keyturn, upstream.mint(roles=["root"]))
        assert (await the_user(keyturn, first)).role == "admin"
        tokens = await exchanged(keyturn, upstream.mint(roles=[], oid="org_2"))
        user = await the_user(keyturn, tokens)
        assert user.role == "admin", "nobody could correct a wrong table"
        assert json.loads(user.claims) == {"org": "org_2"}, "the rest is mapped all the same"
        await keyturn.users.create("root@example.com", PASSWORD, "admin", by=SERVICE)
        assert (await the_user(keyturn, await exchanged(keyturn, upstream.mint(roles=[])))).role == "user"


async def test_two_issuers_that_both_know_a_user_do_not_take_each_other_s_claims_away(
    open_keyturn: Opener, upstream: Upstream, second_upstream: Upstream, tmp_path: Path
) -> None:
    path = Path(file_of(upstream, tmp_path, claims={"oid": "org"}))
    path.write_text(path.read_text() + second_upstream.toml("other", claims={"oid": "unit"}))
    async with open_keyturn(federation_file=str(path)) as keyturn:
        user = await the_user(keyturn, await exchanged(keyturn, upstream.mint(oid="org_1")))
        await linked(keyturn, user.id, second_upstream.mint(oid="org_2"))
        for _ in range(2):
            await exchanged(keyturn, second_upstream.mint(oid="org_2"))
            await exchanged(keyturn, upstream.mint(oid="org_1"))
        [user] = await rows(keyturn, User)
        assert json.loads(user.claims) == {"org": "org_1", "unit": "org_2"}
        assert sum(event == "claims_changed" for event, *_ in await told(keyturn, user.id)) == 1


# -- linked and unlinked by hand


async def test_a_signed_in_user_links_an_identity_which_then_signs_the_user_in(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        user_id = (await a_user(keyturn)).user_id
        token = upstream.mint()
        made = await linked(keyturn, user_id, token)
        assert (made.issuer, made.subject) == (upstream.url, upstream.subject.user_id)
        assert await linked(keyturn, user_id, token) == made, "a lost answer is asked for again"
        assert [each.id for each in await keyturn.identities.of_user(user_id)] == [made.id]
        assert ("identity_linked", "user", str(user_id), "acme") in await told(keyturn, user_id)
        for caller in (CALLER, ANOTHER):
            with pytest.raises(UnacceptableToken) as e:
                await exchanged(keyturn, token, caller=caller)
            assert e.value.cause == "taken", "the token was used up"
        another = upstream.mint()
        assert await linked(keyturn, user_id, another) == made
        with pytest.raises(UnacceptableToken):  # so is one that linked nothing new
            await exchanged(keyturn, another)
        assert (await the_user(keyturn, await exchanged(keyturn, upstream.mint()))).id == user_id


async def test_a_token_that_was_exchanged_links_nobody_else(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        token = upstream.mint()
        owner = await the_user(keyturn, await exchanged(keyturn, token))
        thief = (await a_user(keyturn)).user_id
        for each in (token, upstream.mint()):
            with pytest.raises(Conflict):
                await linked(keyturn, thief, each)
        await keyturn.erasing.erase(owner.id, by=SERVICE)
        with pytest.raises(UnacceptableToken):
            await linked(keyturn, thief, token)
        assert await rows(keyturn, Identity) == []


async def test_two_users_who_link_one_identity_at_once_get_it_once(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    path = file_of(upstream, tmp_path)
    async with open_keyturn(federation_file=path) as one, open_keyturn(federation_file=path) as other:
        users = [(await a_user(one, f"u{n}@example.com")).user_id for n in range(6)]
        for turn in range(3):
            subject = upstream.other(turn)
            outcomes = await asyncio.gather(
                *(
                    linked(each, user_id, upstream.mint(subject=subject))
                    for each, user_id in zip((one, other) * 3, users, strict=True)
                ),
                return_exceptions=True,
            )
            assert sum(not isinstance(each, BaseException) for each in outcomes) == 1
            assert all(isinstance(each, Conflict) for each in outcomes if isinstance(each, BaseException)), outcomes
            assert await count(one, Identity) == turn + 1


async def test_a_disabled_user_links_nothing_and_nobody_links_more_than_the_bound(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        user_id = (await a_user(keyturn)).user_id
        await keyturn.users.disable(user_id, by=SERVICE)
        with pytest.raises(UnacceptableToken):
            await linked(keyturn, user_id, upstream.mint())
        with pytest.raises(NotFound):
            await linked(keyturn, uuid7(), upstream.mint())
        await keyturn.users.enable(user_id, by=SERVICE)
        for number in range(MOST):
            await linked(keyturn, user_id, upstream.mint(subject=upstream.other(number)))
        with pytest.raises(Conflict):
            await linked(keyturn, user_id, upstream.mint(subject=upstream.other(MOST)))


async def test_an_identity_is_unlinked_and_never_the_last_way_in(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, trust_email=True) as keyturn:
        tokens = await exchanged(keyturn, upstream.mint("id_token"))
        user = await the_user(keyturn, tokens)
        [only] = await keyturn.identities.of_user(user.id)
        with pytest.raises(Conflict):
            await keyturn.identities.unlink(user.id, only.id, by=BY)
        second = await linked(keyturn, user.id, upstream.mint(subject=upstream.other(2)))
        await keyturn.identities.unlink(user.id, only.id, by=BY._replace(kind="user", id=str(user.id)))
        assert (await told(keyturn, user.id))[-1] == ("identity_unlinked", "user", str(user.id), "acme")
        await keyturn.rotation.refresh(tokens.refresh_token, by=BY)
        with pytest.raises(Conflict):
            await keyturn.identities.unlink(user.id, second.id, by=BY)
        await keyturn.users.set_password(user.id, PASSWORD, by=SERVICE)
        await keyturn.identities.unlink(user.id, second.id, by=BY)
        assert await keyturn.identities.of_user(user.id) == []
        assert (await keyturn.sign_in.authenticate(ADA, PASSWORD)).user_id == user.id


async def test_an_identity_of_an_issuer_that_is_gone_is_no_way_in(
    open_keyturn: Opener, upstream: Upstream, second_upstream: Upstream, tmp_path: Path
) -> None:
    path = Path(file_of(upstream, tmp_path))
    both = path.read_text() + second_upstream.toml("other")
    path.write_text(both)
    async with open_keyturn(federation_file=str(path)) as keyturn:
        user = await the_user(keyturn, await exchanged(keyturn, upstream.mint()))
        await linked(keyturn, user.id, second_upstream.mint())
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        here, gone = sorted(await keyturn.identities.of_user(user.id), key=lambda each: each.issuer != upstream.url)
        with pytest.raises(Conflict):
            await keyturn.identities.unlink(user.id, here.id, by=BY)
        await keyturn.identities.unlink(user.id, gone.id, by=BY)


async def test_nobody_unlinks_another_user_s_identity(open_keyturn: Opener, upstream: Upstream, tmp_path: Path) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        owner = await the_user(keyturn, await exchanged(keyturn, upstream.mint()))
        thief = (await a_user(keyturn)).user_id
        [identity] = await keyturn.identities.of_user(owner.id)
        for user_id, identity_id in ((thief, identity.id), (owner.id, uuid7()), (uuid7(), identity.id)):
            with pytest.raises(NotFound):
                await keyturn.identities.unlink(user_id, identity_id, by=BY)
        with pytest.raises(AccessDenied):
            await keyturn.identities.unlink(owner.id, identity.id, by=Actor("administrator", str(thief)))
        assert await count(keyturn, Identity) == 1


async def test_two_last_ways_in_that_are_unlinked_at_once_leave_one(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    path = file_of(upstream, tmp_path)
    async with open_keyturn(federation_file=path) as one, open_keyturn(federation_file=path) as other:
        user = await the_user(one, await exchanged(one, upstream.mint()))
        for turn in range(5):
            await linked(one, user.id, upstream.mint(subject=upstream.other(turn)))
            pair = await one.identities.of_user(user.id)
            outcomes = await asyncio.gather(
                *(
                    each.identities.unlink(user.id, identity.id, by=BY)
                    for each, identity in zip((one, other), pair, strict=True)
                ),
                return_exceptions=True,
            )
            assert [type(each) for each in outcomes if each is not None] == [Conflict]
            assert await count(one, Identity) == 1


# -- users without password or address


async def test_a_user_without_a_password_is_refused_like_a_stranger_and_costs_the_same_hashes(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path, trust_email=True) as keyturn:
        user = await the_user(keyturn, await exchanged(keyturn, upstream.mint("id_token")))
        await a_user(keyturn, "bob@example.com")
        hashes: list[str] = []
        matches = keyturn.passwords._matches

        def counted(hashed: str, password: bytes) -> bool:
            hashes.append(hashed)
            return matches(hashed, password)

        keyturn.passwords._matches = counted  # type: ignore[method-assign]  # computes as before, and counts
        seen = {}
        for email in (ADA, "bob@example.com", "nobody@example.com"):
            hashes.clear()
            with pytest.raises(InvalidGrant) as e:
                await keyturn.sign_in.authenticate(email, "not the password")
            seen[email] = (len(hashes), e.value.description, e.value.reason)
        assert len(set(seen.values())) == 1, seen
        assert seen[ADA][0] >= 1
        for password in ("", "None", "\x01"):
            with suppress(Exception):
                await keyturn.sign_in.authenticate(ADA, password)
                pytest.fail("no password is right")
        with pytest.raises(InvalidGrant):
            await keyturn.sign_in.prove(user.id, PASSWORD)


async def test_a_user_without_a_password_changes_none_and_reauthenticates_by_none(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        tokens = await exchanged(keyturn, upstream.mint())
        user = await the_user(keyturn, tokens)
        with pytest.raises(InvalidGrant):
            await keyturn.users.change_password(tokens.session_id, user.id, PASSWORD, NEW_PASSWORD, by=BY)
        with pytest.raises(InvalidGrant):
            await keyturn.reauthentication.reauthenticate(tokens.refresh_token, PASSWORD, by=BY)
        await keyturn.rotation.refresh(tokens.refresh_token, by=BY)


async def test_a_user_without_an_address_gets_no_password_and_no_word_about_the_address(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        tokens = await exchanged(keyturn, upstream.mint())
        user = await the_user(keyturn, tokens)
        for act in (
            keyturn.users.set_password(user.id, PASSWORD, by=SERVICE),
            keyturn.users.reset_password(user.id, by=SERVICE),
            keyturn.users.set_email_verified(user.id, verified=True, by=SERVICE),
        ):
            with pytest.raises(Conflict):
                await act
        await keyturn.rotation.refresh(tokens.refresh_token, by=BY)
        assert await keyturn.users.emails({user.id}) == {}


async def test_users_without_a_password_do_not_hide_the_hashes_of_older_ones_and_need_no_new_one(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        user = await the_user(keyturn, await exchanged(keyturn, upstream.mint()))
        old = (await a_user(keyturn)).user_id
        assert user.id < old, "the user without a password is the oldest"
        async with keyturn.db.begin() as tx:
            await tx.execute(update(User).where(User.id == old).values(password_hash="no hash"))
        assert await keyturn.sign_in.not_computed() == (1, old)


async def test_a_subject_may_have_any_characters_and_no_two_are_the_same(
    open_keyturn: Opener, upstream: Upstream, tmp_path: Path
) -> None:
    names = [";ada@example.com", "ADA", "ada", "a" * 250, "ä", "a\u0308", "😀", "'; --", " ada", "ada "]
    subjects = [f"conn_{name}" for name in names]
    async with federated(open_keyturn, upstream, tmp_path) as keyturn:
        for name in subjects:
            subject = replace(upstream.subject, user_id=name)
            await exchanged(keyturn, upstream.mint(subject=subject))
            await exchanged(keyturn, upstream.mint(subject=subject))
        assert {row.subject for row in await rows(keyturn, Identity)} == set(subjects)
        assert await count(keyturn, User) == len(subjects)
