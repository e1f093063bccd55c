"""The verifiers of access tokens in four languages, with tokens of a real Keyturn and with forged ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest

from app.keyturn import opened
from app.settings import DEFAULT_ISSUER, read
from tests.conftest import CHEAP, SECRET
from tests.example_servers import ACCOUNT, EXAMPLES, keyturn
from tests.service import ROOT, Service
from tests.toolchains import installed

NIMBUS = "com.nimbusds:nimbus-jose-jwt:10.5"
NODE = """
import { createInterface } from "node:readline";
import { verified } from "./verify.mjs";
for await (const line of createInterface({ input: process.stdin })) {
  console.log(await verified(line).then((claims) => claims.sub, () => "refused"));
}
"""
PYTHON = """
import sys, jwt, local
for line in sys.stdin:
    try:
        print(local.verified(line.strip())["sub"])
    except jwt.PyJWTError:
        print("refused")
"""


def python() -> tuple[Path, Sequence[str]]:
    return EXAMPLES / "fastapi-api", [sys.executable, "-c", PYTHON]


def node() -> tuple[Path, Sequence[str]]:
    folder, names = EXAMPLES / "express", ("verify.mjs", "package.json", "package-lock.json")
    sources = [folder / name for name in names]
    made = installed("verify-node", sources, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    return made, ["node", "--input-type=module", "-e", NODE]


def go() -> tuple[Path, Sequence[str]]:
    sources = [EXAMPLES / "verify" / name for name in ("verify.go", "go.mod", "go.sum")]
    made = installed("verify-go", sources, "go", "build", "-o", "verify", ".")
    return made, ["./verify"]


def java() -> tuple[Path, Sequence[str]]:
    copied = ("-q", "dependency:copy", f"-Dartifact={NIMBUS}", "-DoutputDirectory=.")
    made = installed("verify-java", [EXAMPLES / "verify" / "Verify.java"], "mvn", *copied)
    _, name, version = NIMBUS.split(":")
    return made, ["java", "-cp", f"{name}-{version}.jar", "Verify.java"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"data_dir": tmp_path_factory.mktemp("verifiers") / "data", "signing_algorithm": "ES256"}


@pytest.fixture(scope="module")
def service(environment: dict[str, Any], logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with keyturn(tmp_path_factory.mktemp("unused"), logs, **environment) as service:
        yield service


@pytest.fixture(scope="module")
async def tokens(service: Service, environment: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Tokens by what they are, each with whether it is good."""
    answer = httpx2.post(f"{service.url}/auth/login", json=ACCOUNT, trust_env=False).raise_for_status()
    fresh: str = answer.json()["access_token"]
    values = {"secret": SECRET, "registration": "true", **CHEAP, **environment}
    async with opened(read({f"KEYTURN_{name.upper()}": str(value) for name, value in values.items()})) as there:
        await there.keys.load()
        key = there.keys.signing_access

        def signed(typ: str = "at+jwt", **claims: Any) -> str:
            good = jwt.decode(fresh, options={"verify_signature": False})
            left = {name: value for name, value in (good | claims).items() if value is not None}
            return jwt.encode(left, key.signing, "ES256", headers={"kid": key.kid, "typ": typ})

        now = int(datetime.now(UTC).timestamp())
        return {
            "fresh": (fresh, True),
            "signed again": (signed(), True),
            "from a clock ahead": (signed(iat=now + 2, exp=now + 900), True),
            "over": (signed(exp=now - 30), False),
            "of another issuer": (signed(iss="https://evil.example.com"), False),
            "for another audience": (signed(aud="https://other.example.com"), False),
            "without a session": (signed(sid=None), False),
            "without a role": (signed(role=None), False),
            "without an end": (signed(exp=None), False),
            "a logout token": (signed("logout+jwt"), False),
            "any JWT": (signed("JWT"), False),
            "with a broken signature": (fresh[:-6] + "AAAAAA", False),
            "signed with the public key as a secret": (
                jwt.encode({"sub": "eve"}, "x" * 32, "HS256", headers={"kid": key.kid, "typ": "at+jwt"}),
                False,
            ),
            "unsigned": (jwt.encode({"sub": "eve"}, "", "none", headers={"typ": "at+jwt"}), False),
            "junk": ("junk", False),
        }


LANGUAGES = pytest.mark.parametrize("language", [python, node, go, java], ids=lambda language: language.__name__)


def answers(folder: Path, command: Sequence[str], service: Service, tokens: Sequence[str]) -> list[str]:
    """The subject of each token, or `refused`."""
    basis = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**basis, "KEYTURN": service.url, "ISSUER": DEFAULT_ISSUER, "NO_PROXY": "*"},
        input="".join(f"{token}\n" for token in tokens),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@LANGUAGES
def test_a_verifier_takes_access_tokens_and_nothing_else(
    service: Service, tokens: Mapping[str, tuple[str, bool]], language: Any
) -> None:
    folder, command = language()
    said = answers(folder, command, service, [token for token, _ in tokens.values()])
    assert {what: answer != "refused" for what, answer in zip(tokens, said, strict=True)} == {
        what: good for what, (_, good) in tokens.items()
    }


PAGE = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=["RS256", "EdDSA"])
def other(
    request: pytest.FixtureRequest, logs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Service]]:
    """A Keyturn that signs with another algorithm than the samples name."""
    with keyturn(tmp_path_factory.mktemp("other"), logs, signing_algorithm=request.param) as service:
        yield request.param, service


@LANGUAGES
def test_the_page_s_table_says_which_library_takes_which_algorithm(
    other: tuple[str, Service], language: Any, tmp_path: Path
) -> None:
    algorithm, service = other
    made, command = language()
    folder = tmp_path / "changed"
    shutil.copytree(made, folder, symlinks=True)
    [sample] = [path for name in SAMPLES.values() if (path := folder / Path(name).name).exists()]
    sample.write_text(sample.read_text().replace("ES256", algorithm))
    if language is go:
        subprocess.run(["go", "build", "-o", "verify", "."], cwd=folder, check=True)
    answer = httpx2.post(f"{service.url}/auth/login", json=ACCOUNT, trust_env=False).raise_for_status()
    [said] = answers(folder, command, service, [answer.json()["access_token"]])
    [row] = [line.split("|") for line in PAGE.splitlines() if line.startswith(f"| `{algorithm}` ") and "yes" in line]
    expected = row[3 + [python, node, go, java].index(language)].strip()
    assert ("yes" if said != "refused" else "no") == expected.partition(" ")[0]


SAMPLES = {
    "python": "examples/fastapi-api/local.py",
    "js": "examples/express/verify.mjs",
    "go": "examples/verify/verify.go",
    "java": "examples/verify/Verify.java",
}


def test_the_page_s_samples_are_those_that_the_tests_run() -> None:
    samples = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
    assert [language for language, _ in samples] == list(SAMPLES)
    for language, code in samples:
        file = (ROOT / SAMPLES[language]).read_text(encoding="utf-8")
        assert any(textwrap.indent(code, by) in file for by in ("", "\t", " " * 8)), language
    assert NIMBUS in PAGE
