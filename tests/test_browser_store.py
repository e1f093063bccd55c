"""A browser against the service: any order of its requests, answers and losses, step by step, with a model of both.

The browser sends what its store holds. Its answers arrive in any order, or never. The model counts generations and
whole windows, and shares no code with the service. It says each answer before the service gives it. So a live browser
is signed out only where the model says so: by a logout, by reuse, by a later sign-in of its own whose answer is late
or lost, or by an answer that clears and comes late.

`pytest -rP` prints how often each transition was reached.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from app.actors import SERVICE
from app.keyturn import Keyturn
from app.main import create_app
from tests.conftest import PASSWORD, settings_of, time_passes
from tests.cookies import HTTPS, SAME_SITE, Browser, Sealer, SetCookie, ask, client_of, set_cookies

A, R, _ = HTTPS
D, K = HTTPS.device, HTTPS.known
WINDOW = timedelta(seconds=61)

Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["way", "way", "refresh", "arrive", "arrive", "arrive"]), st.integers(0, 7)),
        st.tuples(st.sampled_from(["lapse", "lapse", "lose", "window", "logout", "login", "restart", "verify"]), st.integers(0, 7)),
    ),
    max_size=30,
)  # fmt: skip


@dataclass
class Session:
    """A session in the model."""

    generation: int = 0
    in_window: bool = True
    ended: str | None = None
    device: str | None = None

    def refresh(self, generation: int) -> str:
        """The verdict on a refresh cookie of this generation: "rotate", "retry", or why the session is over."""
        if self.ended:
            return self.ended
        if generation == self.generation:
            self.generation, self.in_window = generation + 1, True
            return "rotate"
        if generation == self.generation - 1 and self.in_window:
            return "retry"
        self.ended = "reuse_detected"
        return self.ended


@dataclass
class Arriving:
    """An answer on its way to the browser."""

    fields: list[SetCookie]
    why: str


@dataclass
class Play:
    """One browser with its user, the answers on their way, and the model."""

    keyturn: Keyturn
    client: httpx2.AsyncClient
    email: str
    reached: Counter[str]
    browser: Browser = field(default_factory=Browser)
    sessions: dict[str, Session] = field(default_factory=dict)
    on_the_way: list[Arriving] = field(default_factory=list)

    def held(self, name: str) -> tuple[str, int] | None:
        """Session and generation of the token in the browser's cookie, opened with the service's keys."""
        value = self.browser.value(name)
        if value is None:
            return None
        seen = Sealer(self.keyturn).open(name, value)
        if name == A:
            return str(seen.session_id), -1
        return str(seen.session_id), self.keyturn.keys.verify_refresh_token(seen.token).generation

    async def play(self, steps: list[Step]) -> None:
        await self.login()
        self.arrive(0)
        for name, which in steps:
            match name:
                case "login" if which > 3:
                    await self.login()
                case "way":
                    await self.on_the_way_to_a_page()
                case "refresh":
                    await self.refresh()
                case "verify":
                    await self.verify()
                case "logout" if which > 5:
                    await self.logout()
                case "arrive":
                    self.arrive(which)
                case "lose" if self.on_the_way:
                    self.on_the_way.pop(which % len(self.on_the_way))
                case "lapse":
                    self.browser.drop(A)
                case "restart":
                    self.browser.restart()
                case "window" if which > 4:
                    await time_passes(self.keyturn, WINDOW)
                    for session in self.sessions.values():
                        session.in_window = False
        await self.end()

    def send(self, answer: httpx2.Response, why: str) -> None:
        """Takes an answer on its way. The fields of one answer set both cookies, or clear both, or there are none."""
        fields = set_cookies(answer)
        assert [each.name for each in fields] in ([], [A, R], *([[A, R, D, K], [A, R, K]] if why == "login" else []))
        assert len({each.clears for each in fields}) <= 1
        self.reached[why] += 1
        if fields:
            self.on_the_way.append(Arriving(fields, why))

    def arrive(self, which: int) -> None:
        if self.on_the_way:
            answer = self.on_the_way.pop(which % len(self.on_the_way))
            self.browser.take(answer.fields)
            if answer.fields[0].clears:
                # Nothing but these takes the cookies of a browser.
                assert answer.why in {"logout", "reuse_detected", "replaced"}, answer.why
                self.reached[f"cleared: {answer.why}"] += 1

    async def login(self) -> None:
        """A sign-in, which replaces the session of the device that the browser names."""
        sent, device = self.browser.sent_to("/auth/login"), self.browser.value(D)
        body = {"email": self.email, "password": PASSWORD, "mode": "cookie", "remember": len(self.sessions) % 2 == 0}
        answer = await ask(self.client, "POST", "/auth/login", sent, body=body, headers=SAME_SITE)
        assert answer.status_code == 200, answer.text
        session_id = answer.json()["session_id"]
        assert session_id not in self.sessions
        for session in self.sessions.values():
            if device is not None and session.device == device:
                session.ended = session.ended or "replaced"
        given = [each.value for each in set_cookies(answer) if each.name == D]
        assert len(given) == (device is None)
        self.sessions[session_id] = Session(device=device or given[0])
        self.send(answer, "login")

    async def on_the_way_to_a_page(self) -> None:
        """A request of a page, for which a proxy or a middleware asks."""
        access, refresh = self.held(A), self.held(R)
        assert access is None or refresh is None or access[0] == refresh[0], "cookies of two sessions"
        answer = await ask(self.client, "GET", "/auth/verify?refresh=true", self.browser.sent_to("/"))
        if access is not None and self.sessions[access[0]].ended is None:
            assert (answer.status_code, set_cookies(answer)) == (200, [])
            self.reached["page"] += 1
        elif refresh is None:
            assert access is None
            assert (answer.status_code, set_cookies(answer)) == (401, [])
            self.reached["signed out"] += 1
        else:
            self.check(answer, refresh)

    async def refresh(self) -> None:
        refresh = self.held(R)
        sent = self.browser.sent_to("/auth/refresh")
        answer = await ask(self.client, "POST", "/auth/refresh", sent, headers=SAME_SITE)
        if refresh is None:
            assert (answer.status_code, set_cookies(answer)) == (400, [])
            return
        self.check(answer, refresh)

    def check(self, answer: httpx2.Response, presented: tuple[str, int]) -> None:
        session_id, generation = presented
        verdict = self.sessions[session_id].refresh(generation)
        if verdict in {"rotate", "retry"}:
            assert answer.status_code == 200, (verdict, answer.text)
            opened = Sealer(self.keyturn).opened(answer)
            token = self.keyturn.keys.verify_refresh_token(opened[R].token)
            assert (str(token.session_id), token.generation) == (session_id, self.sessions[session_id].generation)
            assert {str(each.session_id) for each in opened.values()} == {session_id}
        else:
            assert (answer.status_code, answer.json()["reason"]) == (401, verdict)
            assert [each.clears for each in set_cookies(answer)] == [True, True]
        self.send(answer, verdict)

    async def verify(self) -> None:
        access = self.held(A)
        answer = await ask(self.client, "GET", "/auth/verify", self.browser.sent_to("/"))
        live = access is not None and self.sessions[access[0]].ended is None
        assert (answer.status_code, set_cookies(answer)) == (200 if live else 401, [])

    async def logout(self) -> None:
        held = {each[0] for each in (self.held(A), self.held(R)) if each}
        sent = self.browser.sent_to("/auth/logout")
        answer = await ask(self.client, "POST", "/auth/logout", sent, headers=SAME_SITE)
        assert answer.status_code == (204 if held else 401)
        for session_id in held:
            self.sessions[session_id].ended = self.sessions[session_id].ended or "logout"
        if held:
            self.send(answer, "logout")
        else:
            assert set_cookies(answer) == []

    async def end(self) -> None:
        """All answers arrive. Then the browser is signed in or out for good: no loop of refusals."""
        while self.on_the_way:
            self.arrive(len(self.on_the_way) - 1)
        refusals = 0
        for _ in range(4):
            self.browser.drop(A)
            held = self.held(R)
            await self.on_the_way_to_a_page()
            refusals += bool(self.on_the_way and self.on_the_way[0].fields[0].clears)
            while self.on_the_way:
                self.arrive(0)
            assert (self.held(R) is None) or held is not None
        assert refusals <= 1
        for session_id, session in self.sessions.items():
            row = await self.keyturn.reading.find(UUID(session_id))
            assert (row.generation, row.end_reason) == (session.generation, session.ended)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_no_order_of_requests_and_answers_signs_a_live_browser_out_but_for_a_documented_reason(
    database_url: str,
) -> None:
    reached: Counter[str] = Counter()
    app = create_app(settings_of(database_url, None))
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        lifespan, client = app.router.lifespan_context(app), client_of(app)
        runner.run(lifespan.__aenter__())
        stack.callback(lambda: runner.run(lifespan.__aexit__(None, None, None)))
        stack.callback(lambda: runner.run(client.aclose()))

        @settings(
            max_examples=60,
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        )
        @given(STEPS)
        @example(
            [
                ("lapse", 0),
                ("way", 0),
                ("way", 0),
                ("arrive", 0),
                ("lapse", 0),
                ("way", 0),
                ("arrive", 1),
                ("arrive", 0),
                ("way", 0),
            ]
        )
        @example([("refresh", 0), ("window", 7), ("refresh", 0)])
        @example(
            [("refresh", 0), ("arrive", 0), ("refresh", 0), ("refresh", 0), ("lose", 0), ("window", 7), ("refresh", 0)]
        )
        @example(
            [
                ("refresh", 0),
                ("refresh", 0),
                ("arrive", 0),
                ("refresh", 0),
                ("arrive", 1),
                ("refresh", 0),
                ("arrive", 1),
                ("arrive", 0),
            ]
        )
        @example(
            [
                ("refresh", 0),
                ("login", 7),
                ("arrive", 1),
                ("arrive", 0),
                ("way", 0),
                ("logout", 7),
                ("login", 7),
                ("arrive", 1),
                ("arrive", 0),
            ]
        )
        @example(
            [("login", 7), ("arrive", 0), ("restart", 0), ("way", 0), ("verify", 0), ("refresh", 0), ("logout", 7)]
        )
        def played(steps: list[Step]) -> None:
            async def play() -> None:
                keyturn: Keyturn = app.state.keyturn
                email = f"{secrets.token_hex(8)}@example.com"
                await keyturn.users.create(email, PASSWORD, by=SERVICE)
                await Play(keyturn, client, email, reached).play(steps)

            runner.run(play())

        played()
    print(sorted(reached.items()))
    assert reached.keys() >= {
        "rotate",
        "retry",
        "reuse_detected",
        "logout",
        "page",
        "signed out",
        "cleared: logout",
        "replaced",
    }
