"""The client's address: whose word counts, and how it is read. Pure first, then over real sockets."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import WrongSettings
from app.http.client_addresses import ClientAddresses
from app.http.request import Request
from app.settings import read
from app.settings_clients import networks_in
from tests.conftest import CHEAP, SECRET
from tests.service import Service

PROXIES = networks_in("10.0.0.0/8, 2001:db8:ffff::/48, 127.0.0.1, ::ffff:192.168.0.0/112")
PROXY = "10.0.0.1"
CLIENT = "203.0.113.7"


def asked(peer: str | None, *fields: tuple[str, str]) -> Request:
    """A request from this address of a socket, with these header fields."""
    request = Request()
    request.client = peer
    request.headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields]
    request.fields = dict(request.headers)
    return request


def by_x_forwarded_for(*values: str, peer: str = PROXY) -> str | None:
    return ClientAddresses(PROXIES).of(asked(peer, *(("X-Forwarded-For", value) for value in values)))


def by_forwarded(*values: str, peer: str = PROXY) -> str | None:
    return ClientAddresses(PROXIES, "forwarded").of(asked(peer, *(("Forwarded", value) for value in values)))


# -- whose word counts


@pytest.mark.parametrize("peer", ["203.0.113.9", "::1", "2001:db8::1", "11.0.0.1", "::ffff:203.0.113.9"])
def test_from_a_socket_that_is_no_proxys_no_field_counts(peer: str) -> None:
    own = peer.removeprefix("::ffff:")
    assert by_x_forwarded_for(CLIENT, peer=peer) == own
    assert by_forwarded(f"for={CLIENT}", peer=peer) == own


def test_without_proxies_no_field_counts() -> None:
    for field in ("x-forwarded-for", "forwarded"):
        request = asked("127.0.0.1", ("X-Forwarded-For", CLIENT), ("Forwarded", f"for={CLIENT}"))
        assert ClientAddresses((), field).of(request) == "127.0.0.1"


@pytest.mark.parametrize("peer", [PROXY, "::ffff:10.0.0.1", "192.168.0.9", "::ffff:192.168.0.9", "2001:DB8:ffff::1"])
def test_a_proxy_is_trusted_in_each_spelling_of_its_address(peer: str) -> None:
    assert by_x_forwarded_for(CLIENT, peer=peer) == CLIENT


def test_only_the_field_counts_that_the_operator_names() -> None:
    fields = ("X-Forwarded-For", "203.0.113.1"), ("Forwarded", "for=203.0.113.2")
    assert ClientAddresses(PROXIES).of(asked(PROXY, *fields)) == "203.0.113.1"
    assert ClientAddresses(PROXIES, "forwarded").of(asked(PROXY, *fields)) == "203.0.113.2"
    assert ClientAddresses(PROXIES).of(asked(PROXY, fields[1])) == PROXY
    assert ClientAddresses(PROXIES, "forwarded").of(asked(PROXY, fields[0])) == PROXY


def test_a_client_without_an_address_stays_as_the_server_names_it() -> None:
    assert ClientAddresses(PROXIES).of(asked(None, ("X-Forwarded-For", CLIENT))) is None
    assert ClientAddresses(PROXIES).of(asked("testclient", ("X-Forwarded-For", CLIENT))) == "testclient"


# -- how X-Forwarded-For is read


@pytest.mark.parametrize(
    ("value", "client"),
    [
        (CLIENT, CLIENT),
        (f"1.1.1.1, {CLIENT}", CLIENT),
        (f"1.1.1.1,{CLIENT}", CLIENT),
        (f"{CLIENT}, 10.1.1.1", CLIENT),
        (f"1.1.1.1, {CLIENT}, 10.1.1.1, ::ffff:10.2.2.2, 2001:db8:ffff::7", CLIENT),
        ("10.9.9.9, 10.1.1.1", "10.9.9.9"),
        (f"{CLIENT}:4711", CLIENT),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ('"[2001:db8::1]:4711"', "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:4711", "fe80::1"),
        (f"::ffff:{CLIENT}", CLIENT),
        (f"[::ffff:{CLIENT}]:4711", CLIENT),
        ("::ffff:cb00:7107", CLIENT),
        (f" \t{CLIENT} , ", CLIENT),
        (f", ,{CLIENT},,", CLIENT),
        # An element that names no address ends the list: the proxy that wrote it counts.
        ("", PROXY),
        (" , ,", PROXY),
        ("unknown", PROXY),
        ("_hidden", PROXY),
        (f"{CLIENT}, unknown", PROXY),
        (f"{CLIENT}, unknown, 10.1.1.1", "10.1.1.1"),
        ("203.0.113", PROXY),
        ("203.0.113.007", PROXY),
        ("203.0.113.7/24", PROXY),
        ("3405803783", PROXY),
        ("0x7f.1", PROXY),
        ("client.example", PROXY),
        ("[203.0.113.7]", PROXY),
        ("[2001:db8::1", PROXY),
        ("2001:db8::1]", PROXY),
        ("[2001:db8::1]x", PROXY),
        ("2001:db8::1::2", PROXY),
        (f"for={CLIENT}", PROXY),
        (f"{CLIENT} 203.0.113.8", PROXY),
        ("x" * 5000, PROXY),
        ("1" * 129, PROXY),
        ("\u00b2.0.0.1", PROXY),
        (f"{CLIENT}\u00a0", PROXY),
    ],
)
def test_x_forwarded_for_is_read_from_the_right_and_junk_is_nobodys(value: str, client: str) -> None:
    assert by_x_forwarded_for(value) == client


def test_several_fields_are_one_list() -> None:
    assert by_x_forwarded_for("1.1.1.1", CLIENT) == CLIENT
    assert by_x_forwarded_for(CLIENT, "10.1.1.1") == CLIENT
    assert by_x_forwarded_for(CLIENT, "unknown") == PROXY
    assert by_forwarded("for=1.1.1.1", f"for={CLIENT}") == CLIENT
    assert by_forwarded(f"for={CLIENT}", "for=10.1.1.1") == CLIENT


def test_a_list_of_trusted_addresses_alone_is_read_for_a_bounded_number_of_hops() -> None:
    assert by_x_forwarded_for(f"{CLIENT}, " + ", ".join(["10.1.1.1"] * 31)) == CLIENT
    assert by_x_forwarded_for(f"{CLIENT}, " + ", ".join(["10.1.1.1"] * 5000)) == "10.1.1.1"


# -- how Forwarded is read (RFC 7239)


@pytest.mark.parametrize(
    ("value", "client"),
    [
        (f"for={CLIENT}", CLIENT),
        (f"For={CLIENT}", CLIENT),
        (f'for="{CLIENT}"', CLIENT),
        (f'for="{CLIENT}:4711"', CLIENT),
        (f'for="{CLIENT}:_port"', CLIENT),
        ('for="[2001:db8:cafe::17]"', "2001:db8:cafe::17"),
        ('for="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
        ("for=[2001:db8:cafe::17]:4711", "2001:db8:cafe::17"),
        (f'for="[::ffff:{CLIENT}]"', CLIENT),
        (f"for={CLIENT};proto=https;by=203.0.113.43", CLIENT),
        (f"proto=https; by=10.0.0.1; for={CLIENT}", CLIENT),
        (f"for=1.1.1.1, for={CLIENT}", CLIENT),
        (f"for={CLIENT}, for=10.1.1.1;proto=http", CLIENT),
        (f'for={CLIENT}, for="[::ffff:10.1.1.1]:9", for="[2001:db8:ffff::1]"', CLIENT),
        ("for=10.9.9.9, for=10.1.1.1", "10.9.9.9"),
        ('for="\\2\\03.0.113.7"', CLIENT),
        # Quoted strings hold commas, semicolons and quotation marks.
        (f'for={CLIENT};host="evil, for=1.1.1.1"', CLIENT),
        (f'for={CLIENT};host="evil;for=1.1.1.1"', CLIENT),
        (f'for={CLIENT};host="evil\\", for=1.1.1.1"', CLIENT),
        (f'for={CLIENT};host="x, for=1.1.1.1;a=\\""', CLIENT),
        (f'for={CLIENT};host="x, for=1.1.1.1;a=\\\\"', CLIENT),
        (f'host="for=1.1.1.1";for={CLIENT}', CLIENT),
        # A client can leave a quotation mark open before the element of the proxy.
        (f'for="1.1.1.1, for={CLIENT}', CLIENT),
        (f'for=1.1.1.1;host="\\, for={CLIENT}', CLIENT),
        # An element that names no address ends the list.
        ("", PROXY),
        ("for=unknown", PROXY),
        ("for=_hidden", PROXY),
        ('for="_hidden:_port"', PROXY),
        (f"for={CLIENT}, for=unknown", PROXY),
        (f"for={CLIENT}, for=_hidden, for=10.1.1.1", "10.1.1.1"),
        ("proto=https", PROXY),
        (f"for={CLIENT}, proto=https", PROXY),
        (f"for={CLIENT};for=1.1.1.1", PROXY),
        (f"for={CLIENT};FOR={CLIENT}", PROXY),
        (f"xfor={CLIENT}", PROXY),
        (f"for = {CLIENT}", PROXY),
        (f"for={CLIENT};", PROXY),
        (f'for="{CLIENT}', PROXY),
        (CLIENT, PROXY),
        ('for=""', PROXY),
        ("for=", PROXY),
        ("=;=," * 2000, PROXY),
        ('for="' + "a, " * 2000 + '"', PROXY),
    ],
)
def test_forwarded_is_read_from_the_right_and_junk_is_nobodys(value: str, client: str) -> None:
    assert by_forwarded(value) == client


ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).filter(
    lambda a: not any(a in network for network in PROXIES)
)


def plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


@given(st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=60), ADDRESSES)
@example('for="', ipaddress.IPv4Address(CLIENT))
@example('for="1.1.1.1\\', ipaddress.IPv4Address(CLIENT))
def test_whatever_a_client_writes_the_address_that_the_proxy_appends_counts(
    written: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    if plain(address) != str(address) and any(ipaddress.ip_address(plain(address)) in each for each in PROXIES):
        return  # a proxy's own, in the other spelling
    node = f"[{address}]" if address.version == 6 else str(address)
    assert by_x_forwarded_for(f"{written}, {address}") == plain(address)
    assert by_x_forwarded_for(written, str(address)) == plain(address)
    assert by_forwarded(f'{written}, for="{node}"') == plain(address)
    quoted = written.replace("\\", "\\\\").replace('"', '\\"')
    assert by_forwarded(f'{written}, for="{node}";host="{quoted}"') == plain(address)


# -- the settings


@pytest.mark.parametrize(
    "value", ["0.0.0.0/0", "::/0", "10.0.0.0/8, ::/0", "::ffff:0:0/96", "*", "10.0.0.1/8", "fe80::1%eth0/64"]
)
def test_the_start_refuses_to_trust_everybody_and_networks_that_are_none(value: str) -> None:
    with pytest.raises(WrongSettings, match=r"^KEYTURN_TRUSTED_PROXIES: must be addresses or networks"):
        read({"KEYTURN_TRUSTED_PROXIES": value})


def test_the_start_refuses_a_field_that_nobody_reads() -> None:
    with pytest.raises(WrongSettings, match="KEYTURN_PROXY_FIELD: must be x-forwarded-for or forwarded"):
        read({"KEYTURN_PROXY_FIELD": "x-real-ip"})


# -- over real sockets


def serving(path: Path, **more: str) -> dict[str, str]:
    values = {"database_url": f"sqlite+aiosqlite:///{path}", "redis_url": "none", "secret": SECRET, **CHEAP, **more}
    return {f"KEYTURN_{name.upper()}": value for name, value in values.items()}


def logged(service: Service, *requests: bytes) -> list[str]:
    """The client's address in the log for each request, all sent as they stand by one connection each."""
    for number, fields in enumerate(requests):
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            start = b"GET /auth/me HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: request-%d\r\n" % number
            connection.sendall(start + fields + b"\r\n")
            while connection.recv(65536):
                pass
    found = {}
    for line in service.text_with('"request_id": "request-', len(requests)).splitlines():
        if '"request_id": "request-' in line:
            entry = json.loads(line)
            found[entry["request_id"]] = entry["client"]
    return [found[f"request-{number}"] for number in range(len(requests))]


@pytest.fixture(params=["127.0.0.1", ""])
def service(request: pytest.FixtureRequest, sqlite_template: Path, tmp_path: Path, logs: Path) -> Iterator[Service]:
    (tmp_path / "keyturn.db").write_bytes(sqlite_template.read_bytes())
    more = {"trusted_proxies": request.param} if request.param else {}
    with Service.start(serving(tmp_path / "keyturn.db", **more), logs=logs) as service:
        yield service


@pytest.mark.parametrize("service", [""], indirect=True)
def test_without_proxies_a_service_logs_the_address_of_the_socket(service: Service) -> None:
    forged = b"X-Forwarded-For: 203.0.113.7\r\nForwarded: for=203.0.113.7\r\nX-Real-IP: 203.0.113.7\r\n"
    assert logged(service, forged, b"") == ["127.0.0.1", "127.0.0.1"]


@pytest.mark.parametrize("service", ["127.0.0.1"], indirect=True)
def test_behind_a_proxy_a_service_logs_the_address_that_the_proxy_appends(service: Service) -> None:
    assert logged(
        service,
        b"X-Forwarded-For: 1.1.1.1, 203.0.113.7\r\n",
        b"X-Forwarded-For: 1.1.1.1\r\nx-forwarded-for:203.0.113.7:99\r\n",
        b"X-Forwarded-For: [2001:db8::1]:4711 \r\nForwarded: for=1.1.1.1\r\n",
        b"X-Forwarded-For: \xff\xfe\r\n",
        b"X-Forwarded-For: " + b"203.0.113.7," * 3000 + b"\r\n",
        b"X-Forwarded-For: ktr_" + b"A" * 84 + b"\r\n",
    ) == ["203.0.113.7", "203.0.113.7", "2001:db8::1", "127.0.0.1", "203.0.113.7", "127.0.0.1"]


# -- a proxy that the operator forgot to name


def told(text: str) -> list[tuple[str, str]]:
    """The proxy and the field in each warning of this kind."""
    lines = [json.loads(line) for line in text.splitlines() if '"proxy_not_trusted"' in line]
    assert all(line["level"] == "warning" for line in lines)
    return [(line["proxy"], line["field"]) for line in lines]


@pytest.mark.parametrize("service", [""], indirect=True)
def test_a_proxy_that_nobody_named_is_told_of_once_and_changes_no_address(service: Service) -> None:
    field = b"X-Forwarded-For: 203.0.113.7\r\n"
    assert logged(service, b"Forwarded: for=203.0.113.7\r\n", field, field) == ["127.0.0.1"] * 3
    assert told(service.text()) == [("127.0.0.1", "x-forwarded-for")]


@pytest.mark.parametrize("service", ["127.0.0.1"], indirect=True)
def test_of_a_proxy_that_is_named_nothing_is_told(service: Service) -> None:
    logged(service, b"X-Forwarded-For: 203.0.113.7\r\n", b"")
    assert told(service.text()) == []


@pytest.mark.parametrize(
    ("peer", "tells"),
    [
        ("172.17.0.1", True),
        ("::ffff:172.17.0.1", True),
        ("fd00::1", True),
        ("100.64.0.9", True),
        ("8.8.8.8", False),
        ("2606:4700::1111", False),
        ("10.0.0.1", False),  # named
        ("testclient", False),
    ],
)
def test_only_an_address_that_may_be_the_operator_s_own_tells_of_a_proxy(
    peer: str, *, tells: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses = ClientAddresses(PROXIES)
    addresses.of(asked(peer))
    assert told(capsys.readouterr().err) == []
    for _ in range(2):
        addresses.of(asked(peer, ("X-Forwarded-For", CLIENT)))
    assert told(capsys.readouterr().err) == ([(peer.removeprefix("::ffff:"), "x-forwarded-for")] if tells else [])
