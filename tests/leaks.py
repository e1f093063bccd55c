"""The secrets that no log of the service may hold.

conftest.py searches all logs of a run for them. test_secrets.py tests that the search finds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import NEW_PASSWORD, PASSWORD, SECRET
from tests.upstream.shared_secrets import CLIENT_SECRET, WEBHOOK_SECRET

SECRETS = {
    "refresh token": re.compile(r"ktr_[A-Za-z0-9_-]{84}"),
    "proof of a known device": re.compile(r"ktd_[A-Za-z0-9_-]{48}"),
    "JWT": re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    "sealed cookie": re.compile(r"keyturn-(?:split-)?(?:access|refresh|id)=[A-Za-z0-9_-]{40,}"),
    "password": re.compile("|".join(re.escape(password) for password in (PASSWORD, NEW_PASSWORD))),
    "master secret": re.compile(re.escape(SECRET.rstrip("="))),
    "Argon2 hash": re.compile(r"\$argon2(?:id|i|d)\$"),
    "secret of an issuer": re.compile("|".join(re.escape(each) for each in (CLIENT_SECRET, WEBHOOK_SECRET[6:30]))),
    "refresh token of an issuer": re.compile(r"\brt_[A-Za-z0-9_-]{43}"),
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}


def service_logs(folder: Path) -> list[Path]:
    """The logs that tests.service.Service wrote below the folder."""
    return sorted(folder.rglob("service-*.log"))


def leaks(folder: Path) -> Iterator[str]:
    """Names each secret in the services' logs with its file and line, but does not repeat the secret."""
    for log in service_logs(folder):
        with log.open(errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                for name, pattern in SECRETS.items():
                    if pattern.search(line):
                        yield f"{name} in {log.relative_to(folder)}, line {number}"
