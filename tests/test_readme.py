"""The README works as it stands, and the page for clients has every refusal."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx2
import pytest

from app.errors import Reason, Refusal
from app.http.heads import UriTooLong  # a refusal of the edge
from tests.conftest import PASSWORD
from tests.example_servers import ACCOUNT, keyturn, running
from tests.servers import free_port
from tests.service import Service
from tools.drawing import drawing

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CLIENTS = ROOT / "docs" / "clients.md"
DRAWING = ROOT / "docs" / "images" / "keyturn.svg"


def _rows(text: str) -> Iterator[tuple[str, str]]:
    """The first two cells of each row of the page's tables."""
    for line in text.splitlines():
        if line.startswith("| "):
            first, second, *_ = line[2:].split(" | ")
            yield first, second


def test_the_page_for_clients_lists_every_status_and_error_that_a_refusal_may_have() -> None:
    listed = {
        (int(status), error)
        for first, second in _rows(CLIENTS.read_text(encoding="utf-8"))
        for status in re.findall(r"\b[45]\d\d\b", first)
        for error in re.findall(r"`(\w+)`", second)
    }
    kinds = list(Refusal.__subclasses__())
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert UriTooLong in kinds
    assert listed == {(kind.status, kind.error) for kind in kinds}


def test_the_page_for_clients_has_a_sentence_for_every_reason_and_no_other() -> None:
    text = CLIENTS.read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| `reason` .*\n((?:\|.*\n)+)", text, re.MULTILINE)
    listed = [reason for first, _ in _rows(table) for reason in re.findall(r"`(\w+)`", first)]
    assert sorted(listed) == sorted(get_args(Reason))


def test_the_page_for_clients_lists_every_status_of_the_contract() -> None:
    contract = json.loads((ROOT / "openapi/openapi.json").read_text(encoding="utf-8"))
    refused = {s for each in contract["paths"].values() for o in each.values() for s in o["responses"] if s >= "400"}
    firsts = " ".join(first for first, _ in _rows(CLIENTS.read_text(encoding="utf-8")))
    assert refused <= set(re.findall(r"\b[45]\d\d\b", firsts))


def test_the_readme_is_short_enough_to_be_read() -> None:
    text = README.read_text(encoding="utf-8")
    assert 90 <= text.count("\n") <= 120
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    prose = re.sub(r"^[|!#].*$", "", prose, flags=re.MULTILINE)
    sentences = [each for each in re.split(r"(?<=[.:?])\s", prose) if re.search(r"\w", each)]
    assert len(sentences) > 25
    assert len(re.findall(r"\b[\w'./-]+", prose)) / len(sentences) <= 15


def test_the_drawing_is_the_one_of_its_source() -> None:
    assert DRAWING.read_text(encoding="utf-8") == drawing(), "python -m tools.drawing > docs/images/keyturn.svg"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Service]:
    with keyturn(tmp_path_factory.mktemp("readme"), logs) as service:
        yield service


def test_the_lines_for_a_terminal_sign_in_refresh_and_log_out(service: Service, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (lines,) = [block for block in _blocks("") if "curl" in block]
    lines = lines.replace("http://127.0.0.1:8000", service.url).replace("the password that was printed", PASSWORD)
    done = subprocess.run(
        ["sh", "-eu", "-c", lines.replace("admin@localhost", ACCOUNT["email"])],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "204\n"


def test_the_service_and_the_client_work_as_they_stand(service: Service, tmp_path: Path) -> None:
    server, client = (block.replace("http://127.0.0.1:8000", service.url) for block in _blocks("python"))
    assert all(len([line for line in block.splitlines() if line]) <= 20 for block in (server, client))
    (tmp_path / "main.py").write_text(server, encoding="utf-8")
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "main:app", "--port", str(port)]
    with running(command, port, folder=tmp_path, environment={"NO_PROXY": "*"}) as url:
        refused = httpx2.get(f"{url}/hello", trust_env=False)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"].startswith("Bearer")
        client = client.replace("http://127.0.0.1:9000", url).replace("admin@localhost", ACCOUNT["email"])
        names: dict[str, Any] = {}
        exec(client.replace("the password that was printed", PASSWORD), names)  # the code is our own README's
        first = names["tokens"]["refresh_token"]
        assert names["get"]("/hello").json().startswith("hello ")
        names["tokens"]["access_token"] = "e30.e30.e30"  # refused, so the client refreshes
        assert names["get"]("/hello").json().startswith("hello ")
        assert names["tokens"]["refresh_token"] != first
        httpx2.post(f"{service.url}/auth/logout", json={"refresh_token": first}, trust_env=False)
        with pytest.raises(httpx2.HTTPStatusError, match="401"):
            names["get"]("/hello")
        for each in ("keyturn", "service"):
            names[each].close()


def test_the_service_says_503_while_keyturn_is_away(tmp_path: Path) -> None:
    server, _ = _blocks("python")
    (tmp_path / "main.py").write_text(server.replace(":8000", f":{free_port()}"), encoding="utf-8")
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "main:app", "--port", str(port)]
    with running(command, port, folder=tmp_path, environment={"NO_PROXY": "*"}) as url:
        answer = httpx2.get(f"{url}/hello", headers={"Authorization": "Bearer junk"}, trust_env=False)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
