"""Builds the site from the docs, and says where it is. A warning, such as a link that leads nowhere, is an error.

A word names another folder than build/docs.
"""

import sys
from pathlib import Path

from sphinx.cmd.build import main

ROOT = Path(__file__).resolve().parents[2]

print("Building the site from docs/: half a minute, and most of it for the drawings.", file=sys.stderr, flush=True)
folder = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "build" / "docs"
failed = main(["-q", "-W", "--keep-going", "-c", str(Path(__file__).parent), str(ROOT), str(folder)])
if not failed:
    print((folder / "docs" / "index.html").resolve().as_uri())
sys.exit(failed)
