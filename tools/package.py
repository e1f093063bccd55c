"""Makes what a release consists of, in `dist/`: wheel, source archive, list of parts (SBOM), and their digests.

`python3 dev.py package` runs this in `.venv-package`. Only what HEAD has is packed, and each date in the archives is
HEAD's. So two clones of one commit give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = "requirements.runtime.lock"  # the packages that the image installs


def _git(*words: str) -> bytes:
    git = shutil.which("git")
    if git is None:
        sys.exit("git is not installed. It is needed, because a package is made from a commit.")
    done = subprocess.run([git, "-C", str(ROOT), *words], check=False, capture_output=True)
    if done.returncode:
        sys.exit(f"This folder is not a clone with a commit: git says {done.stderr.decode().strip()}.")
    return done.stdout


def _run(*words: str | Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-m", *words], check=False, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{words[0]} failed:\n{done.stdout}{done.stderr}")


def package(target: Path) -> list[Path]:
    """Makes the files of a release from HEAD, each checked.

    Args:
        target: the folder for the files. What it holds of an earlier call is deleted.

    Raises:
        SystemExit: there is no commit, or a build or a check failed. The message has the tool's own words.
    """
    date = _git("log", "-1", "--format=%ct").decode().strip()
    environment = {**os.environ, "SOURCE_DATE_EPOCH": date}
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        archive = Path(folder) / "source.tar"
        archive.write_bytes(_git("archive", "HEAD"))
        with tarfile.open(archive) as files:
            files.extractall(source, filter="data")
        # `build` makes the wheel from the source archive. So the archive holds all that a wheel needs.
        _run("build", "--no-isolation", "--outdir", target, source, environment=environment)
        made = sorted(target.iterdir())
        _run("twine", "check", "--strict", *made, environment=environment)
        [wheel] = target.glob("*.whl")
        parts = target / f"{'-'.join(wheel.name.split('-')[:2])}.cdx.json"
        # The tool compares the list with the schema of CycloneDX before it writes the file.
        words = ("requirements", "--pyproject", source / "pyproject.toml", "--mc-type", "application")
        _run("cyclonedx_py", *words, "--output-reproducible", "-o", parts, source / PARTS, environment=environment)
    made.append(parts)
    digests = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in made]
    sums = target / "SHA256SUMS"
    sums.write_text("".join(digests), encoding="ascii")
    return [*made, sums]


def main() -> None:
    """Makes the files, and says which they are."""
    for file in package(ROOT / "dist"):
        print(f"{file.stat().st_size:>9,} bytes  {file.relative_to(ROOT)}")
    if changed := _git("status", "--porcelain").decode().splitlines():
        print(
            f"The package is made from HEAD, without the {len(changed)} files that are not committed.", file=sys.stderr
        )


if __name__ == "__main__":
    main()
