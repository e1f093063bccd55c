"""`keyturn openapi`: prints the OpenAPI document, without any set-up."""

from __future__ import annotations

import argparse
import json

from ..settings import Settings
from .arguments import Words, add_word


def add_to(words: Words) -> None:
    """Adds the command."""
    add_word(words, "openapi", "print the OpenAPI document").set_defaults(run=_openapi)


def _openapi(_arguments: argparse.Namespace) -> None:
    from ..main import create_app  # noqa: PLC0415  # FastAPI is not needed by other commands

    print(json.dumps(create_app(Settings()).openapi(), indent=2, ensure_ascii=False))
