"""The handle of node oidc-provider: an unmodified OpenID Connect issuer in a process of its own, and a browser for it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx2

from tests.sentinel import Sentinel
from tests.servers import NotStartedError, on_free_port

from .keys import Keys
from .upstream import START

HERE = Path(__file__).parent / "node"
INSTALL = "TEST_INSTALL"
"""The variable by which `python3 dev.py conformance` lets npm install the provider. No other test asks a registry."""

CLIENT_ID = "keyturn-test"
CLIENT_SECRET = "oidc_provider_client_secret_4hT"
REDIRECT_URI = "https://app.example.com/callback"


def _folder() -> Path:
    lock = (HERE / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "keyturn" / f"test-oidc-{hashlib.sha256(lock).hexdigest()[:16]}"


def missing() -> str:
    """Why the provider can't run here; empty if it can."""
    node, npm, folder = shutil.which("node"), shutil.which("npm"), _folder()
    if node is None:
        return "no node on PATH"
    if folder.exists():
        return ""
    if npm is None or not os.environ.get(INSTALL):
        return "oidc-provider is not installed (python3 dev.py conformance installs it, where npm is)"
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, part)
    done = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=part,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"npm could not install oidc-provider: {done.stderr[-500:]}"
    part.rename(folder)
    return ""


class Provider:
    """One running oidc-provider."""

    port: int

    def __init__(self, keys: Keys, back_channel: str) -> None:
        self.keys = keys
        self._back_channel = back_channel
        self._sentinel = Sentinel()

    @classmethod
    def start(cls, keys: Keys, back_channel: str) -> Self:
        """Starts a provider, which sends its logout tokens to the address `back_channel`."""
        provider = cls(keys, back_channel)
        try:
            on_free_port(provider._launch)
        except BaseException:
            provider.close()
            raise
        return provider

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def members(self, **changes: Any) -> dict[str, Any]:
        """The members of an issuer's configuration that name this provider."""
        usual = {
            "preset": "oidc",
            "issuer": self.url,
            "client_id": CLIENT_ID,
            "algorithms": ["ES256"],
            "ca_file": str(self.keys.ca_file),
            "private_addresses": True,
        }
        return usual | changes

    def text(self) -> str:
        return self._sentinel.log.read_text(errors="replace") if self._sentinel.log.exists() else ""

    def close(self) -> None:
        self._sentinel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _launch(self, port: int) -> None:
        self.port = port
        # The server's file goes beside the installed package, because node looks for packages above the file's folder.
        server = _folder() / f"server-{hashlib.sha256((HERE / 'server.js').read_bytes()).hexdigest()[:16]}.js"
        if not server.exists():
            shutil.copy(HERE / "server.js", server)
        environment = {
            "PATH": os.environ["PATH"],
            "PORT": str(port),
            "CERTIFICATE": str(self.keys.server_file()),
            "CLIENT_ID": CLIENT_ID,
            "CLIENT_SECRET": CLIENT_SECRET,
            "REDIRECT_URI": REDIRECT_URI,
            "BACK_CHANNEL": self._back_channel,
        }
        node = shutil.which("node")
        assert node is not None
        self._sentinel.run([node, server], environment=environment)
        code = self._sentinel.wait(START, lambda: "listening" in self.text())
        if code is not None:
            raise NotStartedError(f"oidc-provider ended with {code}\n{self.text()[-4000:]}")


class Browser:
    """A browser at the provider: it follows the provider's own pages, and keeps their cookies."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        context = ssl.create_default_context(cafile=str(provider.keys.ca_file))
        self._client = httpx2.Client(verify=context, trust_env=False, timeout=20)

    def sign_in(self, login: str) -> str:
        """Signs in by the development pages (any login and password), consents, and returns the ID token."""
        asked = {
            "client_id": CLIENT_ID,
            "redirect_uri": REDIRECT_URI,
            "response_type": "code",
            "scope": "openid email",
            "nonce": "n-1",
            "state": "s-1",
        }
        answer = self._client.get(f"{self._provider.url}/auth", params=asked)
        for _ in range(20):
            if answer.is_redirect:
                location = urljoin(str(answer.url), answer.headers["location"])
                if location.startswith(REDIRECT_URI):
                    return self._tokens(parse_qs(urlsplit(location).query)["code"][0])["id_token"]
                answer = self._client.get(location)
            else:
                answer = self._submit(answer, {"login": login, "password": "any"})
        raise AssertionError("the provider's pages have no end")

    def sign_out(self) -> None:
        """Signs out at the provider's end-session endpoint, and confirms. The provider then sends its logout tokens."""
        self.sign_out_at(f"{self._provider.url}/session/end?client_id={CLIENT_ID}")

    def sign_out_at(self, url: str) -> None:
        """Signs out at an address to which an application sent the browser."""
        answer = self._client.get(url)
        answer = self._submit(answer, {"logout": "yes"})
        assert answer.status_code == 303, answer.text

    def _submit(self, page: httpx2.Response, more: dict[str, str]) -> httpx2.Response:
        """Sends the form of a page, with its hidden fields and those of `more` that the page asks for."""
        assert page.status_code == 200, page.text
        form = re.search(r"<form[^>]*>", page.text)
        assert form, page.text
        action = re.search(r'action="([^"]+)"', form[0])
        assert action, form[0]
        hidden = dict(re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', page.text))
        asked = {name: value for name, value in more.items() if f'name="{name}"' in page.text}
        return self._client.post(urljoin(str(page.url), action[1]), data={**hidden, **asked})

    def _tokens(self, code: str) -> dict[str, Any]:
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT_URI}
        answer = self._client.post(f"{self._provider.url}/token", data=form, auth=(CLIENT_ID, CLIENT_SECRET))
        assert answer.status_code == 200, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
