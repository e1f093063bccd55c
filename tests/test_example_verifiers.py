"""The verifiers of access tokens in four languages, with tokens of a real Keyturn and with forged ones."""

from __future__ import annotations

import os
import subprocess
import sys
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
from tests.service import Service
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


@pytest.mark.parametrize("language", [python, node, go, java], ids=lambda language: language.__name__)
def test_a_verifier_takes_access_tokens_and_nothing_else(
    service: Service, tokens: Mapping[str, tuple[str, bool]], language: Any
) -> None:
    folder, command = language()
    basis = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**basis, "KEYTURN": service.url, "ISSUER": DEFAULT_ISSUER, "NO_PROXY": "*"},
        input="".join(f"{token}\n" for token, _ in tokens.values()),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = dict(zip(tokens, done.stdout.splitlines(), strict=True))
    assert {what: answer != "refused" for what, answer in answers.items()} == {
        what: good for what, (_, good) in tokens.items()
    }
