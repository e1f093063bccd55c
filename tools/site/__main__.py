"""Builds the site from the docs, and says where it is. A warning, such as a link that leads nowhere, is an error."""

import sys
from pathlib import Path

from sphinx.cmd.build import main

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / "docs"

failed = main(["-q", "-W", "--keep-going", "-c", str(Path(__file__).parent), str(ROOT), str(BUILT)])
if not failed:
    print((BUILT / "docs" / "index.html").as_uri())
sys.exit(failed)
