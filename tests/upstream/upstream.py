"""The handle of a running stand-in: it starts the process, mints tokens, and asks for sessions, faults and deliveries."""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Self

from app.federation.issuer import Configured, Issuer, IssuerSecrets
from tests.sentinel import Sentinel
from tests.servers import NotStartedError, free_port, on_free_port
from tests.service import ROOT

from . import webhooks
from .keys import Key, Keys
from .minting import Kind, Subject, changed, claims_of
from .shared_secrets import CLIENT_SECRET, WEBHOOK_SECRET

START = 20.0  # seconds that the process may take to start

CLIENT_ID = "skc_69615647365005437"


def section(name: str, rows: Mapping[str, Any]) -> str:
    """An issuer in a file of issuers. Strings, numbers, booleans and lists of them are alike in JSON and in TOML."""
    tables = {member: value for member, value in rows.items() if isinstance(value, dict)}
    text = f"[issuers.{name}]\n" + "".join(f"{m} = {json.dumps(v)}\n" for m, v in rows.items() if m not in tables)
    for member, value in tables.items():
        text += f"[issuers.{name}.{member}]\n" + "".join(
            f"{json.dumps(k)} = {json.dumps(v)}\n" for k, v in value.items()
        )
    return text


@dataclass(frozen=True)
class Login:
    """A session of the stand-in, with the tokens of its login."""

    access_token: str
    id_token: str
    refresh_token: str
    session_id: str
    user_id: str
    organization_id: str


class Upstream:
    """One stand-in of Scalekit in a process of its own. Its state lives in that process and is lost with it."""

    port: int
    _control: int

    def __init__(self, keys: Keys, sentinel: Sentinel, python: str) -> None:
        self.keys = keys
        self.client_id = CLIENT_ID
        self.client_secret = CLIENT_SECRET
        self.webhook_secret = WEBHOOK_SECRET
        self.subject = Subject()
        """The user and the session of minted tokens, unless a test names others."""
        self.signing = keys.rsa(1)
        self._python = python
        self._sentinel = sentinel
        self._lock = threading.Lock()

    @classmethod
    def start(cls, keys: Keys, python: str = sys.executable) -> Self:
        """Starts a stand-in.

        Args:
            keys: the keys of the test run.
            python: the interpreter. One that has Scalekit's SDK serves gRPC too.
        """
        keys.server_file()
        upstream = cls(keys, Sentinel(), python)
        try:
            on_free_port(upstream._launch)
        except BaseException:
            upstream.close()
            raise
        return upstream

    @property
    def url(self) -> str:
        """The exact `iss`."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        return self.keys.ca_file

    def members(self, **changes: Any) -> dict[str, Any]:
        """The members of an issuer's configuration that name this stand-in. A member that is `...` is left out."""
        usual = {
            "preset": "scalekit",
            "issuer": self.url,
            "client_id": self.client_id,
            "ca_file": str(self.ca_file),
            "private_addresses": True,
        }
        return changed(usual, changes)

    @property
    def secrets(self) -> dict[str, str]:
        """The secrets of an issuer's configuration."""
        return {"client_secret": self.client_secret, "webhook_secret": self.webhook_secret}

    def configured(self, name: str = "acme", **changes: Any) -> Configured:
        """This stand-in as a process of Keyturn holds it."""
        return Configured(
            name=name, issuer=Issuer(**self.members(**changes)), secrets=IssuerSecrets.model_validate(self.secrets)
        )

    def toml(self, name: str = "acme", *, secrets: bool = True, **changes: Any) -> str:
        """The section of a file of issuers. Without `secrets`, the API of sessions is not used."""
        rows = {**self.members(**changes), **(self.secrets if secrets else {})}
        return section(name, rows)

    # -- tokens, minted in the process of the tests

    def claims(self, kind: Kind = "access_token", *, subject: Subject | None = None, **changes: Any) -> dict[str, Any]:
        """The claims of a good token. A change of a claim to `...` leaves it out, and None is JSON's null."""
        good = claims_of(
            kind, issuer=self.url, client_id=self.client_id, subject=subject or self.subject, now=int(time.time())
        )
        return changed(good, changes)

    def mint(
        self,
        kind: Kind = "access_token",
        *,
        subject: Subject | None = None,
        key: Key | None = None,
        header: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        """A token that differs from a good one in these claims, header members and key alone.

        The session of a minted token is unknown to the sessions' API. `sign_in` makes one that is known there.
        """
        return (key or self.signing).token(self.claims(kind, subject=subject, **changes), header)

    def webhook(
        self, login: Login | None = None, *, secret: str | None = None, timestamp: int | None = None, **changes: Any
    ) -> tuple[dict[str, str], bytes]:
        """Header fields and body of a `user.logout` webhook. `changes` replace members of its envelope."""
        about = login or self.subject
        names = ("session_id", "user_id", "organization_id")
        event = webhooks.user_logout({name: getattr(about, name) for name in names})
        return webhooks.signed(changed(event, changes), secret or self.webhook_secret, timestamp=timestamp)

    def other(self, number: int) -> Subject:
        """Another user with another session than `subject`."""
        about = self.subject
        return replace(
            about,
            user_id=f"{about.user_id}{number}",
            session_id=f"{about.session_id}{number}",
            email=f"user{number}@example.com",
        )

    # -- sessions

    def sign_in(
        self, email: str = "ada@example.com", *, session: Mapping[str, Any] | None = None, **user: Any
    ) -> Login:
        """A new session, as after a login with a browser.

        Args:
            email: the user, made at first need.
            session: changes of the session, such as `{"absolute_expires_at": 60}` (seconds from now).
            user: changes of the user: `user_id`, `organization_id`, `email_verified`, `name`, `roles`, `permissions`.
        """
        made = self.call("sign_in", email=email, user=user, session=dict(session or {}))
        return Login(**{name: made[name] for name in Login.__dataclass_fields__})

    def tokens(self, login: Login) -> Login:
        """Further tokens of the same session."""
        made = self.call("tokens", session_id=login.session_id)
        return replace(login, **{name: made[name] for name in ("access_token", "id_token", "refresh_token")})

    def session(self, session_id: str) -> dict[str, Any]:
        """A session as the API shows it. Its `status` is active, expired, revoked or logout."""
        found: dict[str, Any] = self.call("session", session_id=session_id)
        return found

    def status(self, session_id: str) -> str:
        return str(self.session(session_id)["status"])

    def end(self, session_id: str, how: str = "logout") -> bool:
        """Ends a session upstream, which sends logout tokens and webhooks to the addresses of `send_to`."""
        return bool(self.call("end", session_id=session_id, how=how))

    def send_to(self, *, back_channel: tuple[str, ...] = (), webhooks: tuple[str, ...] = ()) -> None:
        """Set the addresses that learn of each end of a session."""
        self.call("send_to", back_channel=[*back_channel], webhooks=[*webhooks])

    def tried(self, count: int = 0, seconds: float = 20) -> list[dict[str, Any]]:
        """The deliveries that were tried, as soon as there are `count`, or after `seconds`."""
        until = monotonic() + seconds
        while len(found := self.call("tried")) < count and monotonic() < until:
            sleep(0.02)
        return list(found)

    # -- the environment

    def settings(self, **values: Any) -> None:
        """Change settings of the environment: the attributes of `tests.upstream.store.Settings`."""
        self.call("settings", **values)

    def rotate(self, *keys: Key, keep: bool = True) -> Key:
        """Put a new signing key in force, beside the former one (`keep`) or in its place.

        Args:
            keys: the new key, and further ones to be published with it. By default the next RSA key.
            keep: whether the former signing key stays published.
        """
        number = int(self.signing.kid.removeprefix("snk_")) if self.signing.kid.removeprefix("snk_").isdigit() else 1
        new = keys or (self.keys.rsa(number + 1),)
        former = [self.signing] if keep else []
        self.publish(*new, *former)
        return new[0]

    def publish(self, *keys: Key) -> None:
        """Publish exactly these keys. The first signs."""
        self.call("publish", kids=[key.kid for key in keys], signing=keys[0].kid)
        self.signing = keys[0]

    def fault(self, path: str, kind: str, **members: Any) -> None:
        """Disturb the requests whose path begins so, until `heal`. `tests.upstream.wire.Fault` lists the kinds."""
        self.call("fault", path=path, kind=kind, **members)

    def key_set(self, content: Any) -> None:
        """Serve this as the key set: an object, or a text as it stands."""
        self.fault("/keys", "answer", status=200, body=content if isinstance(content, str) else json.dumps(content))

    def refuse(self) -> None:
        """Refuse connections, until `heal`."""
        self.call("refuse")

    def heal(self) -> None:
        """End all faults."""
        self.call("heal")

    def requests(self, path: str = "") -> list[dict[str, Any]]:
        """The requests so far whose path begins so: method, path, moment (`at`), status."""
        return [each for each in self.call("seen") if each["path"].startswith(path)]

    def reset(self) -> None:
        """Bring the stand-in back to the state of its start."""
        self.call("reset")
        self.signing = self.keys.rsa(1)

    def call(self, function: str, /, **arguments: Any) -> Any:
        """Calls a function of `tests.upstream.control.Control`."""
        with self._lock, closing(http.client.HTTPConnection("127.0.0.1", self._control, timeout=30)) as connection:
            connection.request(
                "POST", "/", json.dumps({"name": function, "arguments": arguments}), {"connection": "close"}
            )
            answer = json.loads(connection.getresponse().read())
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer["result"]

    # -- the process

    def pause(self) -> None:
        """Stop the process: connections open and nothing is answered. `resume` lets it go on."""
        self._sentinel.pause()

    def resume(self) -> None:
        self._sentinel.resume()

    def close(self) -> None:
        self._sentinel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _launch(self, port: int) -> None:
        self.port, self._control = port, free_port()
        names = (self.port, self._control, self.keys.folder, self.client_id, self.client_secret, self.webhook_secret)
        command = [self._python, "-m", "tests.upstream", *(str(name) for name in names)]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        self._sentinel.run(command, environment=environment)
        try:
            code = self._sentinel.wait(START, self._ready)
        except TimeoutError:
            self._sentinel.kill()
            raise NotStartedError(f"the stand-in is not ready after {START} s\n{self._text()}") from None
        if code is not None:
            raise NotStartedError(f"the stand-in ended with {code}\n{self._text()}")

    def _text(self) -> str:
        log = self._sentinel.log
        return log.read_text(errors="replace")[-4000:] if log.exists() else ""

    def _ready(self) -> bool:
        with suppress(OSError, http.client.HTTPException, ValueError):
            return bool(self.call("ready"))
        return False
