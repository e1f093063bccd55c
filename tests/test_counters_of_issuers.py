"""Each word of each counter, held against what happened: exchanges, requests to issuers, logouts there, the outbox."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import httpx2
import pytest

from app import metrics
from app.actors import SERVICE, Actor
from app.errors import TemporarilyUnavailable
from app.federation.fetching import Fetching
from app.federation.orders import MOST_ATTEMPTS
from app.outgoing.sending import Sending
from tests.api import Api, serving
from tests.conftest import Opener, time_passes
from tests.federated import file_of
from tests.tally import Tally
from tests.test_counters import A_WEEK
from tests.test_fetching import failure, resolving_to
from tests.test_revoking import database_now, settled
from tests.upstream.minting import Subject, new_id
from tests.upstream.upstream import Upstream
from tests.without_exchange import a_user_id, becomes, federated, file_of_issuers, rows, without_tasks, write

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def engine() -> str:
    return "sqlite"


async def exchange(api: Api, token: str, **more: Any) -> int:
    return (await api.post("/auth/exchange", {"subject_token": token, **more})).status_code


def a_subject() -> Subject:
    return Subject(user_id=new_id("usr"), session_id=new_id("ses"))


async def test_each_outcome_of_an_exchange_is_counted_once(
    database_url: str, upstream: Upstream, tmp_path: Path
) -> None:
    settings = {"federation_file": file_of(upstream, tmp_path), "scopes": "orders.read", "limit_exchange": "4/240"}
    async with serving(database_url, **settings) as api:
        tally, disabled = Tally(), a_subject()
        good, late, shut_out = [upstream.mint(subject=each) for each in (a_subject(), a_subject(), disabled)]
        assert [await exchange(api, token) for token in (good, good, late)] == [200] * 3
        tokens = (await api.post("/auth/exchange", {"subject_token": shut_out})).json()
        tally.exactly(metrics.EXCHANGES, exchanged=4)
        me = (await api.get("/auth/me", tokens["access_token"])).json()
        await api.keyturn.users.disable(UUID(me["user"]["id"]), by=SERVICE)
        assert await exchange(api, upstream.mint(subject=disabled)) == 401
        assert await exchange(api, upstream.mint(subject=a_subject()), scope="orders.write") == 400
        await time_passes(api.keyturn, A_WEEK)
        assert await exchange(api, late) == 401
        assert [await exchange(api, "no.good.token") for _ in range(5)] == [401, 401, 429, 429, 429]
        new = upstream.rotate()
        upstream.fault("/keys", "status", status=503)
        assert await exchange(api, upstream.mint(subject=a_subject(), key=new)) == 503
        tally.exactly(metrics.EXCHANGES, exchanged=4, ended=1, denied=1, expired=1, refused=2, limited=3, unavailable=1)


async def test_each_request_to_an_issuer_is_counted_once_by_its_outcome(upstream: Upstream) -> None:
    tally, of, fetching = Tally(), upstream.configured(), Fetching(Sending())
    for _ in range(3):
        await fetching.get_json(f"{upstream.url}/keys", of=of)
    await fetching.post_form(f"{upstream.url}/nowhere", {"a": "b"}, of=of)
    upstream.fault("/keys", "answer", status=200, body="<html></html>")
    await failure(fetching, f"{upstream.url}/keys", of)
    resolve, _ = resolving_to("127.0.0.1")
    inside = upstream.configured(private_addresses=False)
    await failure(Fetching(Sending(resolve)), f"https://localhost:{upstream.port}/keys", inside)
    await failure(fetching, "http://127.0.0.1/keys", of)
    tally.exactly(metrics.FETCHES, answered=3, refused=1, away=2, address_refused=1)
    tally.exactly(metrics.FETCH_DURATION, 7)


async def test_a_request_to_an_issuer_whose_caller_has_no_more_time_is_counted_as_away(upstream: Upstream) -> None:
    async def resolve(_: str, __: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return ["127.0.0.1"]

    tally = Tally()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await Fetching(Sending(resolve)).get_json(f"{upstream.url}/keys", of=upstream.configured())
    tally.exactly(metrics.FETCHES, away=1)
    tally.exactly(metrics.FETCH_DURATION, 1)


async def test_each_logout_at_an_issuer_is_counted_once_by_its_outcome(
    database_url: str, upstream: Upstream, tmp_path: Path
) -> None:
    async with serving(database_url, federation_file=file_of(upstream, tmp_path)) as api:
        tally, someone = Tally(), a_subject()
        token = upstream.mint("logout_token", subject=someone)
        assert [await _log_out(api, token) for _ in range(2)] == [200, 400]  # the same token once more
        assert await _log_out(api, "junk") == 400
        assert await _log_out(api, token, "nobody") == 404
        fields, body = upstream.webhook()
        for _ in range(2):  # a repeated webhook is a success
            answer = await api.client.post("/federation/acme/webhook", content=body, headers=fields)
            assert answer.status_code == 201
        new = upstream.rotate()
        upstream.fault("/keys", "status", status=503)
        assert await _log_out(api, upstream.mint("logout_token", subject=someone, key=new)) == 503
        tally.exactly(metrics.UPSTREAM_LOGOUTS, done=3, malformed=2, not_found=1, unavailable=1)


async def _log_out(api: Api, token: str, name: str = "acme") -> int:
    content = urlencode({"logout_token": token})
    answer: httpx2.Response = await api.client.post(f"/federation/{name}/logout", content=content, headers=FORM)
    return answer.status_code


@pytest.mark.parametrize("engine", ["postgres", "sqlite"])
async def test_each_attempt_to_revoke_a_session_at_its_issuer_is_counted_once(
    open_keyturn: Opener, database_url: str, tmp_path: Path, upstream: Upstream
) -> None:
    async with asyncio.timeout(150):  # so that a wait that never ends says where it stands
        await _attempts(open_keyturn, database_url, file_of_issuers(tmp_path, upstream), upstream)


async def _attempts(open_keyturn: Opener, database_url: str, issuers: Path, upstream: Upstream) -> None:
    tally = Tally()
    good, bad = [await asyncio.to_thread(upstream.sign_in) for _ in range(2)]
    async with open_keyturn(federation_file=issuers) as keyturn:
        user = await a_user_id(keyturn)
        first, second = [await federated(keyturn, user, login.session_id) for login in (good, bad)]
        await keyturn.ending.logout([], [first.refresh_token], "this", by=Actor("user"))
        await becomes(settled, keyturn, first.session_id)
        tally.exactly(metrics.OUTBOX_ATTEMPTS, done=1)
        await asyncio.to_thread(upstream.fault, "/api", "status", status=503)
        await keyturn.ending.logout([], [second.refresh_token], "this", by=Actor("user"))

        async def was_tried() -> bool:
            return (await rows(keyturn))[second.session_id].failure is not None

        await becomes(was_tried)
        await keyturn.sampling._count()
        assert _orders() == {"waiting": 1, "given_up": 0}
    async with without_tasks(database_url, federation_file=issuers) as apart:
        failed = (await rows(apart))[second.session_id].attempts
        await write(apart, second.session_id, attempts=MOST_ATTEMPTS - 1, due_at=await database_now(apart))
    tally.exactly(metrics.OUTBOX_ATTEMPTS, done=1, failed=failed)
    async with open_keyturn(federation_file=issuers) as keyturn:
        await becomes(settled, keyturn, second.session_id)
        await keyturn.sampling._count()
        assert _orders() == {"waiting": 0, "given_up": 1}
    tally.exactly(metrics.OUTBOX_ATTEMPTS, done=1, failed=failed, given_up=1)
    with pytest.raises(TemporarilyUnavailable):  # an operator's call is no attempt of the outbox
        async with open_keyturn(federation_file=issuers) as keyturn:
            await keyturn.revoking.revoke(keyturn.issuers.in_force["acme"], bad.session_id, by=SERVICE)
    tally.exactly(metrics.OUTBOX_ATTEMPTS, done=1, failed=failed, given_up=1)


def _orders() -> dict[str, float]:
    return dict(zip(metrics.OUTBOX.labels["state"], metrics.OUTBOX.cells, strict=False))
