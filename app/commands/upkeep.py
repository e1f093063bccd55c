"""`keyturn gc`: deletes sessions that were over long ago, and what federation no longer needs."""

from __future__ import annotations

import argparse
import json
from datetime import timedelta

from ..keyturn import Keyturn
from ..revocation.lifetimes import LOOK_BACK
from ..sessions.upkeep import KEPT_FOR
from .acts import by, on_parts
from .arguments import Words, add_word, whole
from .output import count_of_sessions


def add_to(words: Words) -> None:
    """Adds the command."""
    parser = add_word(words, "gc", "delete sessions that ended long ago")
    parser.add_argument(
        "--keep-days",
        type=whole,
        default=KEPT_FOR.days,
        metavar="DAYS",
        help="how long to keep ended sessions (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=on_parts(_gc))


async def _gc(keyturn: Keyturn, arguments: argparse.Namespace) -> None:
    wanted = timedelta(days=arguments.keep_days)
    kept = max(wanted, LOOK_BACK)
    deleted = await keyturn.upkeep.gc(by=by(), kept_for=wanted)
    forgotten = await keyturn.forgetting.gc()
    if arguments.json:
        seconds = kept // timedelta(seconds=1)
        print(json.dumps({"deleted": deleted, "kept_for_seconds": seconds, **forgotten._asdict()}))
        return
    period = f"{arguments.keep_days} days" if kept == wanted else f"{kept // timedelta(seconds=1)} s"
    print(
        f"{count_of_sessions(deleted)} deleted; kept: those that live, and those that were over for less than {period}"
    )
    if any(forgotten):
        print(f"forgotten: {forgotten.taken_tokens} external tokens, {forgotten.upstream_sessions} upstream sessions")
    if kept > wanted:
        print(f"{period} is the least: while their access tokens could be valid, a rebuild of Redis needs them")
