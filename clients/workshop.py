"""The tools from the two lock files, and the folder in which clients are made."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "clients"
BUILD = ROOT / "build" / "clients"
CONTRACT = ROOT / "openapi" / "openapi.json"


def installed() -> Path:
    """The folder `node_modules` of clients/package-lock.json, installed once into the user's cache.

    Raises:
        CalledProcessError: npm could not install the packages.
    """
    lock = (HERE / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "keyturn" / f"clients-{hashlib.sha256(lock).hexdigest()[:16]}"
    done = folder / "installed"
    if not done.exists():
        print("Installing the generators from npm (once; 200 MB).", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True)
        done.touch()
    return folder / "node_modules"


def environment(modules: Path | None) -> dict[str, str]:
    """The environment of all commands: the tools of both lock files come first on PATH."""
    own = [str(Path(sys.executable).parent), *([str(modules / ".bin")] if modules else [])]
    return {**os.environ, "NO_COLOR": "1", "PATH": os.pathsep.join([*own, os.environ["PATH"]])}


def version_of(package: str) -> str:
    """The version that the lock of npm or of PyPI names."""
    named: dict[str, str] = json.loads((HERE / "package.json").read_text(encoding="utf-8"))["dependencies"]
    return named.get(package) or version(package)


def bench(name: str, modules: Path | None) -> Path:
    """An empty folder with the contract, the driver of `name` and `node_modules`."""
    folder = BUILD / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(HERE / name, folder)
    shutil.copy(CONTRACT, folder)
    if modules:
        (folder / "node_modules").symlink_to(modules, target_is_directory=True)
    return folder
