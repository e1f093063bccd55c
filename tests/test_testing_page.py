"""The samples of docs/testing.md, as their readers run them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.example_servers import EXAMPLES
from tests.service import ROOT

PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")


def test_the_samples_pass_as_they_stand(tmp_path: Path) -> None:
    samples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(samples) == 4
    for number, code in enumerate(samples):
        installed = code.replace('["keyturn"]', repr([sys.executable, "-m", "app"]))
        (tmp_path / f"test_{number}.py").write_text(installed, encoding="utf-8")
    for name in ("main.py", "local.py"):
        shutil.copy(EXAMPLES / "fastapi-api" / name, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "10 passed" in done.stdout, done.stdout + done.stderr
