"""`keyturn migrate`: brings the database to this release's schema."""

from __future__ import annotations

import argparse

from ..settings import place_of_migrations
from ..storage.migrating import migrate, say
from .arguments import Words


def add_to(words: Words) -> None:
    """Adds the command."""
    words.add_parser("migrate", help="bring the database to this release's schema").set_defaults(run=_migrate)


def _migrate(_arguments: argparse.Namespace) -> None:
    place = place_of_migrations()
    say(place)
    migrate(place)
