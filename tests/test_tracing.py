"""Traces: one span for each request on both doors, batches linked to their requests, and no secret in any span.

`python3 dev.py tracing` installs OpenTelemetry's SDK and runs these tests. Elsewhere those that need it are skipped.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import sleep
from types import FrameType
from typing import Any

import httpx2
import pytest

from app import tracing
from app.actors import SERVICE
from app.http.edge import Edge
from app.main import create_app
from app.routes.health import PROBES
from app.storage.statement_spans import named
from tests.collector import ERROR, SERVER, Collector, Span
from tests.conftest import CHEAP, PASSWORD, SECRET, a_user, settings_of
from tests.servers import Redis
from tests.service import ROOT, Service

MISSING = "" if find_spec("opentelemetry.sdk") else "OpenTelemetry's SDK is missing: python3 dev.py tracing"
needs_the_sdk = pytest.mark.skipif(bool(MISSING), reason=MISSING)

ADA = {"email": "ada@example.com", "password": PASSWORD}
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{CALLER}-01"


@dataclass
class Traced:
    """A service on SQLite that traces, the collector that gets its spans, and a client."""

    service: Service
    collector: Collector
    client: httpx2.Client
    database: Path

    def of(self, answer: httpx2.Response) -> Span:
        """The span of a request."""
        wanted = answer.headers["x-request-id"]

        def its(spans: list[Span]) -> list[Span]:
            return [span for span in spans if span.attributes.get("keyturn.request_id") == wanted]

        (span,) = its(self.collector.spans_when(lambda spans: bool(its(spans))))
        return span

    def settled(self) -> list[Span]:
        """All spans, once the collector has got those of a last request. They are sent in the order of their ends."""
        self.of(self.client.get("/nowhere"))
        return self.collector.spans()

    def login(self) -> dict[str, Any]:
        answer = self.client.post("/auth/login", json=ADA)
        assert answer.status_code == 200, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While the block runs, nothing can be written, so that all that come wait for the next batch."""
        connection = sqlite3.connect(self.database, timeout=10, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")
            connection.close()


def environment_of(folder: Path, **more: str) -> dict[str, str]:
    values = {"data_dir": str(folder), "secret": SECRET, "registration": "true"} | CHEAP
    return {f"KEYTURN_{name.upper()}": value for name, value in values.items()} | more


@contextmanager
def traced_service(folder: Path, logs: Path, **more: str) -> Iterator[Traced]:
    with Collector() as collector:
        environment = environment_of(
            folder,
            KEYTURN_TRACING="true",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_BSP_SCHEDULE_DELAY="100",
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
            FASTAPI_OTEL_AUTO_CONFIGURE="true",  # FastAPI's own spans: they must stay off
            **more,
        )
        with (
            Service.start(environment, logs=logs) as service,
            httpx2.Client(base_url=service.url, trust_env=False) as client,
        ):
            assert client.post("/auth/register", json=ADA).status_code == 201
            yield Traced(service, collector, client, folder / "keyturn.db")


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Traced]:
    with traced_service(tmp_path_factory.mktemp("traced") / "data", logs) as traced:
        yield traced


# -- requests


@needs_the_sdk
def test_each_request_has_one_span_on_either_door(traced: Traced) -> None:
    tokens = traced.login()
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    slow = {"X-Never-Heard-Of": "x"}  # a field that is not plain: FastAPI's door
    sid = tokens["session_id"]
    requests = {
        "GET /auth/verify": [
            traced.client.get("/auth/verify", headers=bearer),
            traced.client.get("/auth/verify", headers=bearer | slow),
            traced.client.get("/auth/verify/of/a/proxy?x=1", headers=bearer),
        ],
        "GET /auth/sessions/{session_id}": [traced.client.get(f"/auth/sessions/{sid}", headers=bearer)],
        "POST /auth/refresh": [traced.client.post("/auth/refresh", json={"refresh_token": "junk"})],
        "GET": [traced.client.get("/nowhere")],
    }
    for name, answers in requests.items():
        for answer in answers:
            span = traced.of(answer)  # exactly one span has the id of the request
            assert (span.name, span.kind, span.parent) == (name, SERVER, "")
            assert span.attributes["http.response.status_code"] == answer.status_code
            assert span.attributes.get("http.route") == (name.partition(" ")[2] or None)
            assert span.status != ERROR
    servers = [span for span in traced.settled() if span.kind == SERVER]
    assert all("keyturn.request_id" in span.attributes for span in servers)  # no library made one
    assert traced.of(requests["POST /auth/refresh"][0]).attributes["keyturn.error"] == "invalid_grant"


@needs_the_sdk
def test_probes_have_no_spans(traced: Traced) -> None:
    before = len(traced.settled())
    for path in PROBES:  # a refused one has no span either, but its line in the log
        traced.client.get(path, headers={"traceparent": PARENT})
        traced.client.post(path)
    assert [span.name for span in traced.settled()[before:]] == ["GET"], "the span of the last request, to /nowhere"


@needs_the_sdk
def test_probes_with_lines_in_the_log_have_spans(tmp_path: Path, logs: Path) -> None:
    with traced_service(tmp_path / "data", logs, KEYTURN_LOG_PROBES="true") as traced:
        assert traced.of(traced.client.get("/healthz")).name == "GET /healthz"
        assert traced.of(traced.client.get("/readyz")).name == "GET /readyz"


@needs_the_sdk
def test_the_process_says_who_it_is_and_the_operator_s_names_count(traced: Traced) -> None:
    traced.of(traced.client.get("/nowhere"))
    for resource in traced.collector.resources():
        assert resource["service.name"] == "keyturn"
        assert resource["deployment.environment.name"] == "test"


@needs_the_sdk
def test_the_log_has_the_id_of_the_trace(traced: Traced) -> None:
    answer = traced.client.get("/nowhere")
    span = traced.of(answer)
    assert f'"trace_id": "{span.trace}"' in traced.service.text_with(answer.headers["x-request-id"])


@needs_the_sdk
def test_the_trace_of_a_caller_goes_on(traced: Traced) -> None:
    for path in ("/auth/verify", "/nowhere"):
        span = traced.of(traced.client.get(path, headers={"traceparent": PARENT, "tracestate": "vendor=1"}))
        assert (span.trace, span.parent) == (TRACE, CALLER)
    later = traced.of(traced.client.get("/nowhere", headers={"traceparent": f"cc-{TRACE}-{CALLER}-01-what"}))
    assert (later.trace, later.parent) == (TRACE, CALLER)  # a later version (W3C Trace Context section 3.2.4)


JUNK = [
    "", "x", PARENT.upper(), PARENT[:-1], f"{PARENT}-x", f"ff-{TRACE}-{CALLER}-01", f"00-{'0' * 32}-{CALLER}-01",
    f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{CALLER}", PARENT.replace("-", "_"), f"{PARENT},{PARENT}",
    f"cc-{TRACE}-{CALLER}-01-" + "x" * 600,
]  # fmt: skip


@needs_the_sdk
@pytest.mark.parametrize("junk", JUNK)
def test_junk_in_the_place_of_a_caller_s_trace_counts_as_none(traced: Traced, junk: str) -> None:
    answer = traced.client.get("/auth/verify", headers={"traceparent": junk})
    span = traced.of(answer)
    assert (answer.status_code, span.parent) == (401, "")
    assert span.trace != TRACE
    assert "traceparent" not in traced.service.text()  # no library complains of it in the log


@needs_the_sdk
def test_two_callers_count_as_none_and_an_odd_tracestate_takes_nothing_from_a_good_parent(traced: Traced) -> None:
    span = traced.of(traced.client.get("/auth/verify", headers=[("traceparent", PARENT)] * 2))
    assert (span.parent, span.trace == TRACE) == ("", False)
    for state in ("", "=", ",,,", "a=1,a=2", "x" * 600, "ü", "odd words of a client"):
        fields = [(b"traceparent", PARENT.encode()), (b"tracestate", state.encode("latin-1"))]
        assert traced.of(traced.client.get("/auth/verify", headers=fields)).trace == TRACE
    assert "tracestate" not in traced.service.text()
    assert "odd words of a client" not in traced.service.text()


# -- the work for them


def below(spans: list[Span], parent: Span) -> list[Span]:
    return [span for span in spans if (span.trace, span.parent) == (parent.trace, parent.id)]


@needs_the_sdk
def test_a_refresh_alone_shows_its_batch_and_its_statement(traced: Traced) -> None:
    tokens = traced.login()
    span = traced.of(traced.client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]}))
    spans = traced.settled()
    (batch,) = below(spans, span)
    assert (batch.name, batch.attributes["keyturn.batch.size"]) == ("batch rotation", 1)
    assert batch.links == {span.id}
    (statement,) = below(spans, batch)
    assert statement.name == "UPDATE sessions"
    assert statement.attributes["db.system.name"] == "sqlite"


@needs_the_sdk
def test_a_login_shows_its_transaction_and_the_statements_in_it(traced: Traced) -> None:
    span = traced.of(traced.client.post("/auth/login", json=ADA))
    spans = traced.settled()
    transactions = [each for each in below(spans, span) if each.name == "transaction"]
    names = [[each.name for each in below(spans, one)] for one in transactions]
    assert any("INSERT sessions" in each for each in names), names
    assert "SELECT users" in [each.name for each in below(spans, span)]


@needs_the_sdk
def test_a_login_shows_what_the_limits_ask_redis(tmp_path: Path, logs: Path, redis: Redis) -> None:
    with traced_service(tmp_path / "data", logs, KEYTURN_REDIS_URL=redis.url(9)) as traced:
        span = traced.of(traced.client.post("/auth/login", json=ADA))
        spans = traced.settled()
        batches = [each for each in below(spans, span) if each.name == "batch limits"]
        assert {each.name for batch in batches for each in below(spans, batch)} == {"EVAL"}


@needs_the_sdk
def test_a_batch_and_the_requests_that_it_serves_are_linked_both_ways(traced: Traced) -> None:
    presented = [traced.login()["refresh_token"] for _ in range(12)]
    with ExitStack() as stack, ThreadPoolExecutor(len(presented)) as threads:
        to_service = partial(httpx2.Client, base_url=traced.service.url, trust_env=False)
        clients = [stack.enter_context(to_service()) for _ in presented]

        def refresh(client: httpx2.Client, token: str) -> httpx2.Response:
            return client.post("/auth/refresh", json={"refresh_token": token})

        for wait in (0.3, 0.6, 1.2, 2.4):  # seconds: on a busy machine, the requests may come one by one
            with traced.busy():
                answers = [threads.submit(refresh, *each) for each in zip(clients, presented, strict=True)]
                sleep(wait)  # all wait: the first in its statement, the others for the next batch
            answered = [answer.result() for answer in answers]
            presented = [answer.json()["refresh_token"] for answer in answered]
            requests = [traced.of(answer) for answer in answered]
            spans = traced.settled()
            ids = {request.id for request in requests}
            batches = [span for span in spans if span.name == "batch rotation" and span.links & ids]
            if max(len(batch.links) for batch in batches) > 1:
                break
        else:
            pytest.fail("no batch ever served two requests")
    assert {request.attributes["http.response.status_code"] for request in requests} == {200}
    for request in requests:
        (its,) = [batch for batch in batches if request.id in batch.links]
        assert its.parent == request.id or its.id in request.links
    for batch in batches:
        assert batch.attributes["keyturn.batch.size"] == len(batch.links)
        assert "UPDATE sessions" in [span.name for span in below(spans, batch)]


@needs_the_sdk
def test_an_outage_is_an_error_of_the_request_and_of_its_statement(traced: Traced) -> None:
    token = traced.login()["refresh_token"]
    with traced.busy():
        answer = traced.client.post("/auth/refresh", json={"refresh_token": token})
    assert answer.status_code == 503
    span = traced.of(answer)
    assert (span.status, span.attributes["error.type"]) == (ERROR, "503")
    assert span.attributes["keyturn.outcome"] == "unavailable"


@needs_the_sdk
def test_what_no_request_asked_for_has_no_span(traced: Traced) -> None:
    traced.settled()
    sleep(0.5)  # the work that earlier requests left behind has ended
    before = len(traced.settled())
    sleep(1.2)  # the fence is read twice a second
    assert len(traced.settled()) == before + 1  # the last request's own


# -- secrets


@needs_the_sdk
def test_no_span_has_a_token_a_path_a_query_an_address_or_an_id_of_somebody(traced: Traced) -> None:
    tokens, marked = traced.login(), "marked-4711"
    access, refresh, sid = tokens["access_token"], tokens["refresh_token"], tokens["session_id"]
    bearer = {"Authorization": f"Bearer {access}", "User-Agent": marked, "Cookie": f"a={marked}", "Referer": marked}
    user = traced.client.get("/auth/me", headers=bearer).json()["user"]["id"]
    for path in (
        f"/{marked}/{refresh}",
        f"/auth/verify/{marked}?x={marked}",
        f"/auth/sessions/{marked}",
        f"/auth/sessions/{sid}",
    ):
        traced.client.get(path, params={"q": marked}, headers=bearer)
    traced.client.post("/auth/login", json=ADA | {"password": marked})
    traced.client.post("/auth/login", json={marked: marked})
    traced.client.post("/auth/refresh", json={"refresh_token": refresh}, headers={"Idempotency-Key": marked * 3})
    traced.client.request(marked.upper(), "/auth/verify", headers=bearer)
    secrets = [access, refresh, sid, user, marked, marked.upper(), PASSWORD, ADA["email"], "127.0.0.1"]
    spans = traced.settled()
    assert len(spans) > 20
    assert [(span.name, secret) for span in spans for secret in secrets if secret in span.text] == []


@needs_the_sdk
async def test_a_defect_is_an_error_without_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "active", tracing.Tracing(provider))

    async def application(_scope: Any, _receive: Any, _send: Any) -> None:
        assert tracing.active is not None
        with tracing.active.transaction("sqlite"):
            raise ValueError(PASSWORD)

    async def nothing(*_: Any) -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope: dict[str, Any] = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/", "query_string": b""}
    await Edge(application)(scope | {"headers": [(b"host", b"a")]}, nothing, nothing)
    transaction, request = exporter.get_finished_spans()
    assert (transaction.name, transaction.attributes["error.type"]) == ("transaction", "ValueError")
    assert (request.attributes["error.type"], request.attributes["keyturn.error"]) == ("500", "server_error")
    assert request.context.span_id == transaction.parent.span_id
    assert PASSWORD not in "".join(span.to_json() for span in exporter.get_finished_spans())


# -- without it


def test_without_the_setting_neither_tracer_nor_exporter_is_loaded() -> None:
    # (redis-py loads the SDK's metrics wherever the SDK is installed.)
    ours = ("opentelemetry.sdk.trace", "opentelemetry.exporter")
    code = f"import sys, app.main, app.commands.serve; print([m for m in sys.modules if m.startswith({ours})])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, "KEYTURN_TRACING needs OpenTelemetry's SDK: docs/tracing.md says how to install it"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf"),
    ],
    ids=["no SDK", "gRPC"],
)
def test_a_start_that_can_not_trace_says_so_in_one_line(tmp_path: Path, more: dict[str, str], told: str) -> None:
    if more and MISSING:
        pytest.skip(MISSING)
    hidden = "" if more else "import sys; sys.modules['opentelemetry.sdk'] = None; "
    code = f"{hidden}from app.__main__ import main; import sys; sys.argv = ['keyturn', 'serve', '--port', '0']; sys.exit(main())"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    environment |= environment_of(tmp_path / "data", KEYTURN_TRACING="true", **more)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"keyturn: {told}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


OF_TRACES = {"tracing.py", "request_spans.py", "statement_spans.py"}


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_without_the_setting_a_refresh_and_a_verification_call_nothing_of_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(settings_of(database_url, None))
    called: list[str] = []

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and Path(frame.f_code.co_filename).name in OF_TRACES:
            called.append(frame.f_code.co_name)

    async def both(client: httpx2.AsyncClient, refresh_token: str) -> str:
        sys.setprofile(note)
        try:
            answer = await client.post("/auth/refresh", json={"refresh_token": refresh_token})
            bearer = {"Authorization": f"Bearer {answer.json()['access_token']}"}
            verified = await client.get("/auth/verify", headers=bearer)
        finally:
            sys.setprofile(None)
        assert (answer.status_code, verified.status_code) == (200, 200)
        return str(answer.json()["refresh_token"])

    async with app.router.lifespan_context(app):
        keyturn = app.state.keyturn
        tokens = await keyturn.starting.start(await a_user(keyturn), by=SERVICE)
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="https://auth.example.com") as client:
            token = await both(client, tokens.refresh_token)
            assert called == []

            class Planted:
                """A tracing that records nothing."""

                def __getattr__(self, name: str) -> Any:
                    called.append(name)
                    raise AttributeError(name)

            with monkeypatch.context() as patch:
                patch.setattr(tracing, "active", Planted())
                with pytest.raises(AttributeError, match="request"):
                    await both(client, token)
            assert called  # so a call would have been noticed


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("SELECT a FROM users WHERE id = $1 FOR UPDATE", ("SELECT", "users")),
        ("SELECT FROM sessions FOR NO KEY UPDATE SKIP LOCKED", ("SELECT", "sessions")),
        ("WITH b AS (SELECT 1 FROM unnest($1)) UPDATE sessions SET x = 1", ("UPDATE", "sessions")),
        ("INSERT INTO events (a) VALUES ($1) ON CONFLICT DO UPDATE SET a = 1", ("INSERT", "events")),
        ("DELETE FROM sessions", ("DELETE", "sessions")),
        ("SELECT pg_advisory_xact_lock(1)", ("SELECT", "")),
        ("BEGIN", ("BEGIN", "")),
        ("", ("", "")),
    ],
)
def test_a_statement_is_named_by_its_kind_and_table(statement: str, names: tuple[str, str]) -> None:
    assert named(statement) == names


# -- a collector that is away


@needs_the_sdk
def test_a_collector_that_is_away_holds_up_neither_a_request_nor_the_end(tmp_path: Path, logs: Path) -> None:
    with socket.socket() as silent:  # takes connections, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        environment = environment_of(
            tmp_path / "data",
            KEYTURN_TRACING="true",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}",
            OTEL_BSP_SCHEDULE_DELAY="100",
            OTEL_EXPORTER_OTLP_TIMEOUT="60",
        )
        with (
            Service.start(environment, logs=logs) as service,
            httpx2.Client(base_url=service.url, trust_env=False) as client,
        ):
            for _ in range(50):
                assert client.get("/nowhere").status_code == 404
            assert service.terminate(30) == 0  # the exporter alone would wait for a minute
