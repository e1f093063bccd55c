"""One program that is given the contract: the commands that it takes, and what became of them."""

import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SEEN = """\
same refresh token
admin@localhost
204
401 invalid_token logout
"""
"""The lines of each driver: two refreshes with one token, the user, the status of the logout, the refusal after it."""
SECONDS = 420
"""The time that one command may take. The first run of Maven fetches all that it needs."""


class Outcome(NamedTuple):
    """The outcome of a trial. `why` is empty if all went well."""

    name: str
    version: str
    done: str
    why: str


@dataclass(frozen=True)
class Trial:
    """A generator, with its driver in the folder `clients/NAME`.

    Each command runs in a folder of its own, which has the contract as `openapi.json` and the driver.
    """

    name: str
    package: str
    """The package of PyPI or npm that has the generator."""
    makes: tuple[str, ...]
    checks: tuple[str, ...]
    """Compilers and type checkers, at their strictest. A finding is an error."""
    runs: str
    """Starts the driver. URL and password of the service are added."""
    needs: tuple[str, ...] = ()
    """Programs that must be on PATH, beside those that the lock files install."""

    def outcome(self, version: str, folder: Path, given: Mapping[str, str], account: tuple[str, str]) -> Outcome:
        """Run all commands in `folder`; `given` is their environment, `account` is URL and password."""
        done: list[str] = []
        for word, commands in (("generated", self.makes), ("checked", self.checks)):
            for command in commands:
                code, text = _run(shlex.split(command), folder, given)
                if code:
                    return Outcome(self.name, version, ", ".join(done), f"{command}\n{text}")
            done.append(word)
        code, text = _run([*shlex.split(self.runs), *account], folder, given)
        if code or text != SEEN:
            return Outcome(self.name, version, ", ".join(done), f"{self.runs}\n{text}\n(exit code {code})")
        return Outcome(self.name, version, ", ".join([*done, "works"]), "")


def _run(command: list[str], folder: Path, given: Mapping[str, str]) -> tuple[int, str]:
    """The exit code, and what the command printed."""
    try:
        ended = subprocess.run(
            command,
            cwd=folder,
            env=given,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return 1, f"{late.output or b''!r}\nended after {SECONDS} seconds"
    return ended.returncode, ended.stdout
