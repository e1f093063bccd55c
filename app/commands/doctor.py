"""`keyturn doctor`: checks all that a start or a request needs, and advises the operator if a part is missing."""

from __future__ import annotations

import argparse
import asyncio
import json

from ..errors import ConfigurationError, TemporarilyUnavailable
from ..keyturn import opened
from ..printable import LONGEST_MESSAGE, printable
from ..settings import read
from . import after_restore
from .acts import on_parts
from .arguments import Words, add_word
from .examinations import EXAMINATIONS, Finding


def add_to(words: Words) -> None:
    """Adds the command."""
    parser = add_word(words, "doctor", "check the set-up and say what to do")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--after-restore", action="store_true", help="take a restored database into use, and say what came back with it"
    )
    parser.add_argument(
        "--sign-everyone-out", action="store_true", help="with --after-restore: also end all sessions of the database"
    )
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    if arguments.after_restore:
        on_parts(after_restore.take)(arguments)
        return 0
    if arguments.sign_everyone_out:
        arguments.parser.error("--sign-everyone-out needs --after-restore")
    findings = asyncio.run(examine())
    if arguments.json:
        print(json.dumps([{"check": f.check, "ok": not f.advice, "advice": f.advice} for f in findings]))
    else:
        for check, advice in findings:
            line = f"!!  {check}: {advice}" if advice else f"ok  {check}"
            print(printable(line, LONGEST_MESSAGE))
    if any(finding.away for finding in findings):
        return 3
    return 1 if any(finding.advice for finding in findings) else 0


async def examine() -> list[Finding]:
    """All findings, in the order in which a start would meet them. A finding that stops a start is the last."""
    findings: list[Finding] = []
    try:
        settings = read()
        findings += [Finding(each) for each in ("settings", settings.embedded) if each]
        async with opened(settings) as keyturn:
            findings.append(Finding("master secret"))
            for look in EXAMINATIONS:
                findings.extend([finding async for finding in look(keyturn)])
    except ConfigurationError as e:
        findings.append(Finding("set-up", str(e)))
    except TemporarilyUnavailable as e:
        findings.append(Finding("database", f"away: {e.cause}: start it, or look at KEYTURN_DATABASE_URL"))
    return findings
