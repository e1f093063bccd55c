"""``python -m app`` is the ``keyturn`` command."""

import sys

from app.cli import main

sys.exit(main())
