"""`keyturn serve` ends when it is told to, whatever it does in that moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHEAP
from tests.service import ROOT

_OPTIONAL = "ujson"
"""A package that Keyturn has not, and that FastAPI looks for while it is imported: only the application imports it."""

_SENDS = """
import os, signal, sys, weakref

class Referent: pass

def send(*_):
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, "serve does not listen to the signal yet"
    os.write(2, b"the signal is sent\\n")
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


@pytest.mark.parametrize("moment", _MOMENTS)
def test_a_sigterm_while_the_application_is_imported_ends_the_process_in_order(tmp_path: Path, moment: str) -> None:
    own = tmp_path / "packages"
    own.mkdir()
    (own / f"{_OPTIONAL}.py").write_text(_SENDS.format(now=_MOMENTS[moment]), encoding="utf-8")
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
    assert "the signal is sent\n" in said
    assert process.returncode == 0, said
