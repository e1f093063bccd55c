"""No refusal holds a secret. When a test run ends, conftest.py searches all answers that clients got."""

from __future__ import annotations

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import httpx2
import pytest

from tests.conftest import PASSWORD, SECRET
from tests.leaks import leaks
from tests.refusals import recorded
from tests.service import ROOT


class Echo(BaseHTTPRequestHandler):
    """Answers with the status in the path, and repeats the body of the request."""

    def do_POST(self) -> None:
        said = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(int(self.path[1:]))
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        pass


async def test_a_secret_in_a_refusal_would_be_found(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Echo) as server:
        Thread(target=server.serve_forever).start()
        options: dict[str, Any] = {"base_url": f"http://127.0.0.1:{server.server_port}", "trust_env": False}
        try:
            with recorded(tmp_path):
                async with httpx2.AsyncClient(**options) as client:
                    for status in (200, 400, 503):
                        assert (await client.post(f"/{status}", content=f"your {PASSWORD}")).text.endswith(PASSWORD)
                with httpx2.Client(**options) as blocking:
                    assert blocking.post("/401", content=SECRET).text == SECRET
                    # Keyturn reads an issuer's answers so, in this process: the record must not take them away.
                    with blocking.stream("POST", "/401", content=SECRET) as answer:
                        assert b"".join(answer.iter_raw()) == SECRET.encode()
            assert list(leaks(tmp_path)) == [
                "password in service-refusals.log, line 1",
                "password in service-refusals.log, line 2",
                "master secret in service-refusals.log, line 3",
            ]
        finally:
            server.shutdown()
            # The search at the end of this run must not find the planted secrets.
            (tmp_path / "service-refusals.log").unlink()


@pytest.mark.deep
def test_a_run_in_which_a_refusal_held_a_secret_fails() -> None:
    test = f"""
import httpx2

async def test_it():
    async def app(scope, receive, send):
        await send({{"type": "http.response.start", "status": 401, "headers": []}})
        await send({{"type": "http.response.body", "body": {PASSWORD.encode()!r}}})

    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://x") as client:
        assert (await client.get("/")).status_code == 401
"""
    with TemporaryDirectory() as folder:  # a folder outside of this run's, because this run's is searched too
        (Path(folder) / "test_leaky.py").write_text(test)
        command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-o", "asyncio_mode=auto", "-rE"]
        run = subprocess.run(
            [*command, f"--basetemp={folder}/base", f"--rootdir={folder}", folder],
            check=False,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
        )
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 passed, 1 error" in run.stdout
    assert "password in refusals0/service-refusals.log, line 1" in run.stdout
