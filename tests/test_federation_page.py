"""The commands, the file and the table of docs/federation.md are what the service takes and does.

`python -m tests.test_federation_page` writes the table of members anew.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from app.federation import issuer_file
from app.federation.issuer import Issuer
from app.federation.issuer_members import shown
from tests.conftest import CHEAP, SECRET
from tests.service import ROOT
from tests.upstream.upstream import Upstream

FILE = ROOT / "docs" / "federation.md"
PAGE = FILE.read_text(encoding="utf-8")
PLACE = re.compile(r"(?<=<!-- members -->\n).*(?=<!-- /members -->)", re.DOTALL)


def table() -> str:
    lines = ["| member | default | |\n|---|---|---|\n"]
    for name, field in Issuer.model_fields.items():
        default = "required" if field.is_required() else f"`{shown(field.default)}`" if shown(field.default) else ""
        lines.append(f"| `{name}` | {default} | {field.description} |\n")
    return "".join(lines)


def commands() -> list[list[str]]:
    """Each command of the page that begins with `keyturn federation`, as its words."""
    text = PAGE.replace("\\\n", " ")
    lines = [line.strip() for line in text.split("\n") if line.startswith("    keyturn federation ")]
    return [shlex.split(line)[1:] for line in lines]


def test_the_file_of_the_page_is_a_file_of_issuers(tmp_path: Path) -> None:
    [block] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    for name in ("scalekit-webhook", "scalekit"):
        secret = tmp_path / name
        secret.touch(mode=0o600)
        secret.write_text("whsec_" + "QUJD" * 8)
        block = block.replace(f'"/run/secrets/{name}"', f'"{secret}"')
    file = tmp_path / "federation.toml"
    file.write_text(block)
    found = issuer_file.read(file)["acme"]
    assert found.issuer.roles == {"orders:write": "editor"}
    assert found.secrets.webhook_secret is not None


def test_the_page_lists_every_member_as_it_is() -> None:
    found = PLACE.search(PAGE)
    assert found is not None
    assert found.group() == table(), "python -m tests.test_federation_page writes it anew"


@pytest.mark.parametrize("preset", ["scalekit", "oidc"])
def test_the_commands_of_the_page_add_an_issuer_that_is_then_there(
    upstream: Upstream, database_url: str, tmp_path: Path, preset: str
) -> None:
    name = {"scalekit": "acme", "oidc": "corp"}[preset]
    settings = {"database_url": database_url, "redis_url": "none", "secret": SECRET, **CHEAP}
    environment = {f"KEYTURN_{key.upper()}": str(value) for key, value in settings.items()}
    environment |= {"KEYTURN_ISSUER": "https://auth.example.com", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}

    def keyturn(words: list[str]) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "app", *words],
            cwd=tmp_path,
            env=environment,
            input=f"{upstream.client_secret}\n{upstream.webhook_secret}\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    run = 0
    for words in commands():
        if words[1] != "add" or words[2] != name:
            continue
        if "--issuer" in words:
            at = words.index("--issuer") + 1
            assert words[at].startswith("https://")
            words[at] = upstream.url
            words += ["--set", f"ca_file={upstream.ca_file}", "--set", "private_addresses=true"]
        keyturn(words)
        run += 1
    assert run == {"scalekit": 2, "oidc": 1}[preset]
    listed = keyturn(["federation", "list", "--wide"])
    assert name in listed
    assert upstream.url in listed


if __name__ == "__main__":
    FILE.write_text(PLACE.sub(lambda _: table(), PAGE), encoding="utf-8")
    sys.exit(0)
