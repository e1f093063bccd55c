"""Scalekit's unmodified SDK in a process of its own, with a Python of its own.

`python3 dev.py conformance` installs it into `.venv-scalekit` from its lock. Keyturn itself never needs it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Self

from tests.service import ROOT
from tests.upstream.upstream import Upstream

PYTHON = Path(os.environ.get("TEST_SCALEKIT_PYTHON", ROOT / ".venv-scalekit" / "bin" / "python"))

MISSING = "" if PYTHON.exists() else "no Scalekit SDK (python3 dev.py conformance installs it)"
"""Why no SDK can be driven here; empty if one can."""


class SdkError(Exception):
    """The SDK raised. The first argument is the name of its exception's class."""


def environment(upstream: Upstream) -> dict[str, str]:
    """The environment in which the SDK trusts the stand-in: requests and gRPC each have a variable of their own."""
    authority = str(upstream.ca_file)
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "REQUESTS_CA_BUNDLE": authority,
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": authority,
        "GRPC_VERBOSITY": "NONE",
    }


class Sdk:
    """One client of the SDK. Its key cache and its connections last as long as this object."""

    def __init__(self, upstream: Upstream) -> None:
        names = (upstream.url, upstream.client_id, upstream.client_secret)
        self._process = subprocess.Popen(
            [PYTHON, "-m", "tests.upstream.sdk", *names],
            env=environment(upstream),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def __call__(self, function: str, /, **arguments: Any) -> Any:
        """Calls a function of `tests.upstream.sdk.Calls`. Raises SdkError."""
        assert self._process.stdin
        print(json.dumps([function, arguments]), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the process of the SDK ended"
        answer, error = json.loads(line)
        if error:
            raise SdkError(*error)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
