"""Requests to issuers lead to checked addresses alone, and are bounded in time and size, whatever the other side does."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.errors import TemporarilyUnavailable
from app.federation.fetching import Fetching
from app.federation.issuer import Configured, Issuer
from app.outgoing.addresses import is_allowed
from app.outgoing.sending import MOST_BYTES, AddressRefused, Sending
from tests.servers import free_port
from tests.upstream.upstream import Upstream

PUBLIC = ["8.8.8.8", "93.184.216.34", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"]
INNER = [
    "127.0.0.1",
    "127.255.255.254",
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "::1",
    "fc00::1",
    "fd12:3456::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::1",
    "2002:c0a8:101::",
]
NOBODYS = [
    "169.254.169.254",
    "::ffff:169.254.169.254",
    "fe80::1",
    "fe80::1%eth0",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "224.0.0.1",
    "239.255.255.250",
    "ff02::1",
    "240.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "198.18.0.1",
    "2001:db8::1",
    "2001::1",
    "::127.0.0.1",
    "fec0::1",
    "",
    "localhost",
    "127.1",
    "0x7f000001",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address: str) -> None:
    assert is_allowed(address, private=False)
    assert is_allowed(address, private=True)


@pytest.mark.parametrize("address", INNER)
def test_a_private_or_loopback_address_is_allowed_by_configuration_alone(address: str) -> None:
    assert not is_allowed(address, private=False)
    assert is_allowed(address, private=True)


@pytest.mark.parametrize("address", NOBODYS)
def test_an_address_that_no_issuer_can_have_is_never_allowed(address: str) -> None:
    assert not is_allowed(address, private=False)
    assert not is_allowed(address, private=True)


def resolving_to(*addresses: str) -> tuple[Callable[[str, int], Awaitable[Sequence[str]]], list[str]]:
    """A resolver that knows one answer, and the names that it was asked for."""
    asked: list[str] = []

    async def resolve(host: str, _: int) -> Sequence[str]:
        asked.append(host)
        return addresses

    return resolve, asked


async def failure(fetching: Fetching, url: str, of: Configured) -> TemporarilyUnavailable:
    """The outage that a request ends in."""
    with pytest.raises(TemporarilyUnavailable) as caught:
        await fetching.get_json(url, of=of)
    assert caught.value.status == 503
    return caught.value


@pytest.mark.parametrize(
    "addresses",
    [
        ("127.0.0.1",),
        ("10.0.0.1",),
        ("169.254.169.254",),
        ("93.184.216.34", "127.0.0.1"),
        ("127.0.0.1", "93.184.216.34"),
    ],
)
async def test_a_name_that_leads_inside_is_refused_before_any_connection(
    upstream: Upstream, addresses: tuple[str, ...]
) -> None:
    resolve, asked = resolving_to(*addresses)
    of = upstream.configured(private_addresses=False)
    refused = await failure(Fetching(Sending(resolve)), f"https://localhost:{upstream.port}/keys", of)
    assert isinstance(refused, AddressRefused)
    assert asked == ["localhost"]
    assert upstream.requests() == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "[::1]", "localhost", "0.0.0.0"])
async def test_no_spelling_of_this_machine_is_reached(upstream: Upstream, host: str) -> None:
    await failure(
        Fetching(Sending()), f"https://{host}:{upstream.port}/keys", upstream.configured(private_addresses=False)
    )
    assert upstream.requests() == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/keys",
        "HTTP://127.0.0.1:{port}/keys",
        "ftp://127.0.0.1:{port}/keys",
        "file:///etc/passwd",
        "//127.0.0.1:{port}/keys",
        "https:///keys",
        "https://user@127.0.0.1:{port}/keys",
        "https://user:secret@127.0.0.1:{port}/keys",
        "https://127.0.0.1\n:{port}/keys",
        "https://127.0.0.1:99999/keys",
        "keys",
        "",
    ],
)
async def test_a_url_that_is_not_https_is_refused(upstream: Upstream, url: str) -> None:
    refused = await failure(Fetching(Sending()), url.format(port=upstream.port), upstream.configured())
    assert refused.cause == "issuer acme: one of its URLs is not https", "and nothing else of the URL"
    assert upstream.requests() == []


async def test_the_connection_goes_to_the_address_that_was_checked(upstream: Upstream) -> None:
    """`localhost` is here by the machine's resolver. By the one that was asked, nobody is there."""
    resolve, asked = resolving_to("127.0.0.2")
    await failure(Fetching(Sending(resolve)), f"https://localhost:{upstream.port}/keys", upstream.configured())
    assert asked == ["localhost"], "the name is resolved once"
    assert upstream.requests() == []


async def test_a_name_that_changes_its_address_changes_nothing(upstream: Upstream) -> None:
    """Rebinding: the second answer of the resolver is never asked for."""
    answers = iter([["127.0.0.1"], ["169.254.169.254"]])

    async def resolve(_: str, __: int) -> Sequence[str]:
        return next(answers)

    url = f"https://localhost:{upstream.port}/keys"
    status, _ = await Fetching(Sending(resolve)).get_json(url, of=upstream.configured())
    assert status == 200
    assert list(answers) == [["169.254.169.254"]]


async def test_the_next_address_is_tried_where_the_first_takes_no_connection(upstream: Upstream) -> None:
    resolve, _ = resolving_to("127.0.0.2", "127.0.0.1")
    status, _ = await Fetching(Sending(resolve)).get_json(
        f"https://localhost:{upstream.port}/keys", of=upstream.configured()
    )
    assert status == 200
    assert len(upstream.requests()) == 1


async def test_a_name_without_an_address_is_an_outage() -> None:
    of = Configured(name="gone", issuer=Issuer(preset="scalekit", issuer="https://issuer.invalid", client_id="skc_1"))
    refused = await failure(Fetching(Sending()), "https://issuer.invalid/keys", of)
    assert refused.cause == "issuer gone: the name of its host has no address"


# -- a server of a name that no resolver knows


def certificate_for(folder: Path, name: str) -> None:
    """Writes a certificate for `name` as `ca.pem`, and with its key as `server.pem`."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    made = (
        x509.CertificateBuilder()
        .subject_name(named)
        .issuer_name(named)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    ).public_bytes(serialization.Encoding.PEM)
    (folder / "ca.pem").write_bytes(made)
    (folder / "server.pem").write_bytes(
        made
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@asynccontextmanager
async def a_server(
    folder: Path, name: str, answer: bytes
) -> AsyncIterator[tuple[Configured, int, list[tuple[str | None, bytes]]]]:
    """A server with a certificate for `name`: its issuer, its port, and the name and head of each request."""
    certificate_for(folder, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    names: list[str | None] = []
    context.sni_callback = lambda _, asked, __: names.append(asked)
    seen: list[tuple[str | None, bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((names[-1], await reader.readuntil(b"\r\n\r\n")))
        writer.write(answer)
        await writer.drain()
        writer.close()

    port = free_port()
    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
    issuer = {"issuer": f"https://{name}:{port}", "ca_file": str(folder / "ca.pem"), "private_addresses": True}
    try:
        yield Configured(name="named", issuer=Issuer(preset="oidc", client_id="x", **issuer)), port, seen  # type: ignore[arg-type]
    finally:
        server.close()
        await server.wait_closed()


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"


async def test_certificate_and_host_are_those_of_the_name(tmp_path: Path) -> None:
    resolve, _ = resolving_to("127.0.0.1")
    async with a_server(tmp_path, "issuer.test", OK) as (of, port, seen):
        assert await Fetching(Sending(resolve)).get_json(f"https://issuer.test:{port}/keys?a=b", of=of) == (200, {})
    [(name, head)] = seen
    assert name == "issuer.test"
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "get /keys?a=b http/1.1"
    assert f"host: issuer.test:{port}" in lines
    assert "accept-encoding: identity" in lines
    assert not [line for line in lines if line.startswith(("authorization:", "cookie:"))]


async def test_the_certificate_of_another_name_is_refused(tmp_path: Path) -> None:
    resolve, _ = resolving_to("127.0.0.1")
    async with a_server(tmp_path, "issuer.test", OK) as (of, port, seen):
        refused = await failure(Fetching(Sending(resolve)), f"https://other.test:{port}/keys", of)
    assert refused.cause == "issuer named: its certificate is not valid"
    assert seen == []


async def test_a_compressed_answer_is_refused(tmp_path: Path) -> None:
    """A thousand times as many bytes could come out of it as went in."""
    body = gzip.compress(b"{}" + b" " * 10_000_000)
    assert len(body) < MOST_BYTES
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    resolve, _ = resolving_to("127.0.0.1")
    async with a_server(tmp_path, "issuer.test", head + body) as (of, port, _):
        refused = await failure(Fetching(Sending(resolve)), f"https://issuer.test:{port}/keys", of)
    assert refused.cause == "issuer named: its answer is compressed"


# -- faults of the other side


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ({"kind": "large"}, "its answer is too large"),
        ({"kind": "redirect", "location": "{url}/.well-known/openid-configuration"}, "its answer is a redirect"),
        ({"kind": "answer", "status": 200, "body": "<html></html>"}, "its answer is no JSON"),
        ({"kind": "answer", "status": 200, "body": '{"keys":[],"keys":[]}'}, "its answer is no JSON"),
        ({"kind": "answer", "status": 200, "body": "[" * 100_000}, "its answer is no JSON"),
        ({"kind": "answer", "status": 200, "body": "\ufeff{}"}, "its answer is no JSON"),
        ({"kind": "close"}, "its answer broke off"),
        ({"kind": "cut"}, "its answer broke off"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
async def test_a_wrong_answer_is_an_outage_of_the_issuer(upstream: Upstream, fault: dict[str, str], cause: str) -> None:
    members = {name: value.format(url=upstream.url) if name == "location" else value for name, value in fault.items()}
    upstream.fault("/keys", **members)
    refused = await failure(Fetching(Sending()), f"{upstream.url}/keys", upstream.configured())
    assert cause in refused.cause
    assert [each["path"] for each in upstream.requests()] == ["/keys"], "a redirect is not followed"


async def test_a_refused_connection_is_an_outage(upstream: Upstream) -> None:
    upstream.refuse()
    assert "no connection" in (await failure(Fetching(Sending()), f"{upstream.url}/keys", upstream.configured())).cause


async def test_a_certificate_of_nobody_is_refused_and_no_request_is_sent(upstream: Upstream) -> None:
    upstream.call("certificate", name="stranger")
    refused = await failure(Fetching(Sending()), f"{upstream.url}/keys", upstream.configured())
    assert refused.cause == "issuer acme: its certificate is not valid"
    assert upstream.requests() == []


async def test_the_public_authorities_count_where_no_others_are_named(upstream: Upstream) -> None:
    refused = await failure(Fetching(Sending()), f"{upstream.url}/keys", upstream.configured(ca_file=None))
    assert refused.cause == "issuer acme: its certificate is not valid"


async def test_a_slow_issuer_is_an_outage_after_some_seconds(upstream: Upstream) -> None:
    """The answer would take half a minute, an hour, or a minute of single bytes. All three are asked at once."""
    for path, fault in (("/a", {"kind": "slow"}), ("/b", {"kind": "hang"}), ("/c", {"kind": "drip", "seconds": 1})):
        upstream.fault(path, **fault)
    began = monotonic()
    found = await asyncio.gather(
        *(failure(Fetching(Sending()), f"{upstream.url}{path}", upstream.configured()) for path in ("/a", "/b", "/c"))
    )
    assert monotonic() - began < 29
    assert {each.cause for each in found} == {"issuer acme: no answer in time"}


async def test_a_slow_resolver_is_an_outage(upstream: Upstream) -> None:
    async def resolve(_: str, __: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return ["127.0.0.1"]

    assert (
        "no answer in time"
        in (await failure(Fetching(Sending(resolve)), f"{upstream.url}/keys", upstream.configured())).cause
    )


async def test_a_resolver_that_hangs_holds_none_of_the_threads_that_the_database_needs(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg looks up the name of the database in the threads of the event loop."""
    of, go_on, looked_up = upstream.configured(), threading.Event(), threading.Semaphore(0)

    def hang(*_: object, **__: object) -> None:
        looked_up.release()
        go_on.wait(120)
        raise OSError

    try:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", hang)
            asked = [asyncio.create_task(failure(Fetching(Sending()), f"{upstream.url}/keys", of)) for _ in range(50)]
            while not looked_up.acquire(blocking=False):
                await asyncio.sleep(0.01)
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 60) == "free"
            assert {(await each).cause for each in asked} == {"issuer acme: no answer in time"}
    finally:
        go_on.set()


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_an_error_has_its_status_whatever_its_body(upstream: Upstream, status: int) -> None:
    upstream.fault("/keys", "answer", status=status, body="<html>", times=1)
    assert await Fetching(Sending()).get_json(f"{upstream.url}/keys", of=upstream.configured()) == (status, None)
    upstream.fault("/keys", "answer", status=status, body='{"error":"x"}', times=1)
    assert await Fetching(Sending()).get_json(f"{upstream.url}/keys", of=upstream.configured()) == (
        status,
        {"error": "x"},
    )


async def test_an_answer_without_a_body_has_no_value(upstream: Upstream) -> None:
    upstream.fault("/keys", "answer", status=200, body="")
    assert await Fetching(Sending()).get_json(f"{upstream.url}/keys", of=upstream.configured()) == (200, None)


async def test_a_proxy_of_the_environment_is_not_used(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    status, _ = await Fetching(Sending()).get_json(f"{upstream.url}/keys", of=upstream.configured())
    assert status == 200


async def test_forms_json_and_bearer_tokens_arrive(upstream: Upstream, tmp_path: Path) -> None:
    fields = {
        "grant_type": "client_credentials",
        "client_id": upstream.client_id,
        "client_secret": upstream.client_secret,
    }
    of = upstream.configured()
    status, answer = await Fetching(Sending()).post_form(f"{upstream.url}/oauth/token", fields, of=of)
    assert status == 200
    login = upstream.sign_in()
    path = f"{upstream.url}/api/v1/sessions/{login.session_id}"
    assert (await Fetching(Sending()).get_json(path, of=of))[0] == 401
    status, session = await Fetching(Sending()).get_json(path, of=of, bearer=answer["access_token"])
    assert status == 200
    assert login.session_id in json.dumps(session)
    status, _ = await Fetching(Sending()).post_json(f"{path}/revoke", of=of, bearer=answer["access_token"])
    assert status == 200
    assert upstream.status(login.session_id) == "revoked"
    resolve, _ = resolving_to("127.0.0.1")
    async with a_server(tmp_path, "issuer.test", OK) as (named, port, seen):
        await Fetching(Sending(resolve)).post_json(
            f"https://issuer.test:{port}/", {"a": [1]}, of=named, bearer="secret-1"
        )
    head = seen[0][1].decode().lower()
    assert "content-type: application/json\r\n" in head
    assert "authorization: bearer secret-1\r\n" in head
    assert f"content-length: {len(json.dumps({'a': [1]}))}\r\n" in head


async def test_a_changed_file_of_authorities_counts_at_the_next_request(upstream: Upstream, tmp_path: Path) -> None:
    fetching, file = Fetching(Sending()), tmp_path / "ca.pem"
    of = upstream.configured(ca_file=str(file))
    url = f"{upstream.url}/keys"
    assert "ca_file can't be read" in (await failure(fetching, url, of)).cause
    file.write_text("no certificate")
    assert "ca_file can't be read" in (await failure(fetching, url, of)).cause
    shutil.copy(upstream.ca_file, file)
    assert (await fetching.get_json(url, of=of))[0] == 200
    file.write_text("no certificate, again")
    assert "ca_file can't be read" in (await failure(fetching, url, of)).cause


async def test_a_pipe_in_the_place_of_authorities_is_not_read(upstream: Upstream, tmp_path: Path) -> None:
    """Nobody writes into it, so the thread that reads it would wait for ever."""
    os.mkfifo(pipe := tmp_path / "pipe")
    of = upstream.configured(ca_file=str(pipe))
    try:
        assert "ca_file can't be read" in (await failure(Fetching(Sending()), f"{upstream.url}/keys", of)).cause
    finally:
        with suppress(OSError):  # free the thread, if there is one
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))


async def test_no_outage_holds_a_url_a_header_field_or_a_body(upstream: Upstream) -> None:
    upstream.fault("/", "close")
    with pytest.raises(TemporarilyUnavailable) as caught:
        await Fetching(Sending()).post_form(
            f"{upstream.url}/oauth/token", {"client_secret": "s3cret"}, of=upstream.configured(), bearer="b3arer"
        )
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert not {"s3cret", "b3arer", upstream.url} & {*caught.value.cause.split()}
