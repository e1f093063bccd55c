"""The greeting of the embedded default: where it listens, who may sign in, and lines to paste into a shell."""

from __future__ import annotations

import os
import sys

from ..command_name import called
from ..settings import Settings
from ..users.first_administrator import ADMINISTRATOR

_BOLD, _CYAN = "1", "36"  # of ECMA-48 section 8.3.117


def greeting(settings: Settings, url: str, *, made: str | None, administrator: str | None, advice: str) -> str:
    """The text that a start prints.

    Args:
        settings: those of the embedded default.
        url: where a client on this machine reaches the service.
        made: the first administrator's password, if this start made one. It is shown at this start alone.
        administrator: the e-mail address of an administrator, if there is one.
        advice: what to type if a password that Keyturn made has run out; else empty.
    """
    lines = [f"Keyturn on {_styled(url, _BOLD)}, data in {settings.data_dir.absolute()}"]
    if settings.embedded and not sys.stdout.isatty():  # a service, so perhaps one that lost its settings
        lines.append(f"For production name a database: {settings.embedded}")
    if settings.pages:
        lines.append(f"Open {url}/ in a browser: the state, and the reference of the API.")
    if settings.iss != url:
        lines.append(f"Access tokens name {settings.iss} as issuer; KEYTURN_ISSUER changes it.")
    if made:
        lines += _first(url, made)
    elif advice:
        lines.append(f"Passwords that Keyturn made: {advice}")
    elif administrator:
        lines.append(f"A new password for an administrator: {called()} users reset-password {administrator}")
    return "\n".join(lines) + "\n"


def _first(url: str, password: str) -> list[str]:
    # Other users of the machine can see arguments, so curl reads what is secret from the shell's own echo.
    account = f"""echo '{{"email": "{ADMINISTRATOR}", "password": "'$PASSWORD'"}}'"""
    taken = """RT=$(echo "$A" | grep -o 'ktr_[A-Za-z0-9_-]*')"""
    held = """echo '{"refresh_token": "'$RT'"}'"""
    shell = (
        f"KEYTURN={url} JSON='Content-Type: application/json'",
        f"PASSWORD={password}",
        f"""A=$({account} | curl -sS $KEYTURN/auth/login -H "$JSON" -d @-)""",
        f'echo "login    $A"; {taken}',
        f"""A=$({held} | curl -sS $KEYTURN/auth/refresh -H "$JSON" -d @-)""",
        f'echo "refresh  $A"; {taken}',
        f"""{held} | curl -sS $KEYTURN/auth/logout -H "$JSON" -d @- -w 'logout   %{{http_code}}\\n'""",
    )
    return [
        "Made an administrator. The password is shown at this start alone:",
        "",
        f"    {ADMINISTRATOR}   {_styled(password, _BOLD)}",
        "",
        f"Change it: {called()} users set-password {ADMINISTRATOR}",
        "It is good for 24 hours.",
        "",
        "Log in, refresh, log out, in a second terminal:",
        "",
        *(f"    {_styled(line, _CYAN)}" for line in shell),
    ]


def _styled(text: str, style: str) -> str:
    """The text in a style, where a terminal shows it and the operator wants it (https://no-color.org)."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") in {None, "dumb"}:
        return text
    return f"\x1b[{style}m{text}\x1b[0m"
