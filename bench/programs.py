"""The benchmark's own C programs, compiled at first use."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


class NoCompilerError(Exception):
    """The machine has no C compiler, and none could be installed."""


def compiled(name: str) -> Path:
    """Compiles `name`.c of this folder, and keeps the program in the virtual environment until its source changes.

    Raises NoCompilerError, or CalledProcessError if the source does not compile.
    """
    source = HERE / f"{name}.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    program = Path(sys.prefix) / "bench" / f"{name}-{digest}"
    if not program.exists():
        program.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:
            made = Path(folder) / name
            subprocess.run([*_compiler(folder), "-O2", "-std=c11", "-o", made, source, "-lm"], check=True)
            made.rename(program)  # atomic, so another process that compiles it at the same moment does no harm
    return program


def _compiler(folder: str) -> list[str]:
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    print("No C compiler found: fetching one (ziglang, about 100 MB, not kept).", file=sys.stderr, flush=True)
    where = ["install", "--quiet", "--target", f"{folder}/zig", "ziglang"]
    ways = [[sys.executable, "-m", "pip", *where], [sys._base_executable, "-m", "pip", *where]]  # type: ignore[attr-defined]  # noqa: SLF001  # the Python that made the environment; documented in site.py alone
    if uv := shutil.which("uv"):
        ways.insert(0, [uv, "pip", *where])
    for way in ways:
        if subprocess.run(way, check=False, capture_output=True).returncode == 0:
            return [f"{folder}/zig/ziglang/zig", "cc"]
    raise NoCompilerError("The driver is written in C: install cc, gcc or clang (ziglang could not be fetched either).")
