"""`keyturn serve` ends when it is told to, whatever it does in that moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHEAP
from tests.service import ROOT

_OPTIONAL = {"uvloop": "_serve_on.<locals>.end", "ujson": "Server.handle_exit"}
"""Packages for which uvicorn and FastAPI look while they begin, and whose handler a signal meets then: that of
`keyturn serve` before the server listens to signals, and the server's own while it imports the application."""

_SENDS = """
import os, signal, sys, weakref

class Referent: pass

def send(*_):
    handler = signal.getsignal(signal.SIGTERM)
    os.write(2, b"SIGTERM for %s\\n" % handler.__qualname__.encode())
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000): pass  # Python calls the handler here

{now}
raise ModuleNotFoundError("as if the package were missing", name=__name__)
"""

_MOMENTS = {
    "between two statements": "send()",
    # Python drops each exception of such a callback, so also the one by which the handler would end the process.
    "in the callback of a weak reference": "referent = Referent(); watching = weakref.ref(referent, send); del referent",
}


@pytest.mark.parametrize("package", _OPTIONAL)
@pytest.mark.parametrize("moment", _MOMENTS)
def test_a_sigterm_during_an_import_of_the_start_ends_the_process_in_order(
    tmp_path: Path, moment: str, package: str
) -> None:
    own = tmp_path / "packages"
    own.mkdir()
    (own / f"{package}.py").write_text(_SENDS.format(now=_MOMENTS[moment]), encoding="utf-8")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(own), "KEYTURN_PORT": "0"}
    environment |= {f"KEYTURN_{name.upper()}": value for name, value in CHEAP.items()}
    environment["KEYTURN_DATA_DIR"] = str(tmp_path / "data")
    with subprocess.Popen(
        [sys.executable, "-m", "app", "serve"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert f"SIGTERM for {_OPTIONAL[package]}\n" in said
    assert process.returncode == 0, said
