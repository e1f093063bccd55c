"""The samples of docs/web.md for a page and for a development server, as they stand, against a real Keyturn."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cookies import LOOPBACK
from tests.example_servers import ACCOUNT, keyturn, running
from tests.servers import free_port
from tests.service import ROOT, Service
from tests.toolchains import installed

VITE = [ROOT / "tests" / "vite" / name for name in ("package.json", "package-lock.json")]


def sample(words: str) -> str:
    """The only block of JavaScript with these words."""
    text = (ROOT / "docs" / "web.md").read_text(encoding="utf-8")
    [block] = [block for block in re.findall(r"(?ms)^```js\n(.*?)^```$", text) if words in block]
    return str(block)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Service]:
    with keyturn(tmp_path_factory.mktemp("web"), logs) as service:
        yield service


def in_a_page(service: Service, script: str) -> Any:
    """The result of a script that has the sample, and a `fetch` with the page's origin and a store of cookies."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    browser = f"""
        const origin = {json.dumps(service.url)}, account = {json.dumps(ACCOUNT)}, cookies = new Map(), seen = [];
        const builtIn = globalThis.fetch;
        let away = false;
        globalThis.fetch = async (path, init = {{}}) => {{
            const Cookie = [...cookies].map(([name, value]) => `${{name}}=${{value}}`).join("; ");
            const headers = {{ Origin: origin, ...init.headers, ...(Cookie && {{ Cookie }}) }};
            const answer = away ? new Response("", {{ status: 503 }}) : await builtIn(origin + path, {{ ...init, headers }});
            for (const field of answer.headers.getSetCookie()) {{
                const [, name, value] = /^([^=]+)=([^;]*)/.exec(field);
                if (/max-age=0/i.test(field)) cookies.delete(name);
                else cookies.set(name, value);
            }}
            seen.push(`${{path}} ${{answer.status}}`);
            return answer;
        }};
        {sample("async function whoami()")}
        console.log(JSON.stringify(await (async () => {{ {script} }})()));
        process.exit();
    """
    words = ["node", "--input-type=module", "-e", browser]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_page_learns_who_is_signed_in_also_after_the_access_cookie_ran_out(service: Service) -> None:
    seen = in_a_page(
        service,
        f"""
        await login(account.email, account.password);
        const before = await whoami();
        cookies.delete({json.dumps(LOOPBACK.access)});
        const after = await whoami();
        return {{ who: [before.user.email, after.user.email], seen }};
        """,
    )
    assert seen["who"] == [ACCOUNT["email"]] * 2
    assert seen["seen"] == ["/auth/login 200", "/auth/me 200", "/auth/me 401", "/auth/refresh 200", "/auth/me 200"]


def test_a_page_where_nobody_is_signed_in_shows_the_login(service: Service) -> None:
    seen = in_a_page(
        service,
        """
        const first = await whoami();
        await login(account.email, account.password);
        const stolen = new Map(cookies);
        await logout();
        for (const [name, value] of stolen) cookies.set(name, value);
        return { first, ended: await whoami(), seen };
        """,
    )
    assert (seen["first"], seen["ended"]) == (None, None)
    assert seen["seen"][:2] == ["/auth/me 401", "/auth/refresh 400"]
    assert seen["seen"][-2:] == ["/auth/me 401", "/auth/refresh 401"]


def test_an_outage_is_no_verdict_for_a_page(service: Service) -> None:
    script = "away = true; return whoami().then(() => 'a verdict', (error) => error.message);"
    assert in_a_page(service, script) == "try again: 503"


def test_a_development_server_of_vite_passes_a_sign_in_by_cookie_on(service: Service, tmp_path: Path) -> None:
    modules = installed("vite", VITE, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    (tmp_path / "node_modules").symlink_to(modules / "node_modules")
    configuration = sample("server: {").replace("http://127.0.0.1:8000", service.url)
    assert service.url in configuration
    (tmp_path / "vite.config.mjs").write_text(configuration)
    (tmp_path / "index.html").write_text("<!doctype html><title>the page</title>")
    port = free_port()
    vite = ["node", "node_modules/vite/bin/vite.js", "--host", "127.0.0.1", "--port", str(port), "--strictPort"]
    with (
        running(vite, port, folder=tmp_path, environment={}) as page,
        httpx2.Client(base_url=page, trust_env=False, timeout=10) as browser,
    ):
        assert "the page" in browser.get("/", headers={"Accept": "text/html"}).text
        browser.headers["Origin"] = page
        stranger = {**ACCOUNT, "mode": "cookie"}
        assert browser.post("/auth/login", json=stranger).json()["error"] == "cross_site"
        # A browser says so beside each fetch of the page's own origin, and Vite passes it on.
        browser.headers["Sec-Fetch-Site"] = "same-origin"
        answer = browser.post("/auth/login", json=stranger)
        assert (answer.status_code, LOOPBACK.refresh in answer.cookies) == (200, True)
        assert browser.get("/auth/me").json()["user"]["email"] == ACCOUNT["email"]
        assert browser.post("/auth/refresh").status_code == 200
        assert browser.post("/auth/logout").status_code == 204
        assert browser.get("/auth/me").status_code == 401
