"""The pages of the web application. Each text that is not ours is escaped, and no page has a script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any
from urllib.parse import quote

from .journal import Entry

Identity = Mapping[str, str]


def start(identity: Identity | None) -> str:
    """The page that everyone may see."""
    if identity is None:
        body = """
<p class="lead">This application keeps no session and no secret. Keyturn does, and two sealed cookies in your browser
lead to it.</p>
<p><a class="button" href="/login">Sign in</a></p>"""
    else:
        body = """
<p class="lead">You are signed in. Leave this page open for longer than an access token lives, then go on: the
session is refreshed on the way, and you notice nothing.</p>
<ul class="cards">
<li><a href="/protected"><strong>Protected page</strong><span>Only for those who are signed in</span></a></li>
<li><a href="/session"><strong>My session</strong><span>Its deadlines and its story</span></a></li>
</ul>"""
    return _page("Welcome", body, identity, here="/")


def login(return_to: str, *, email: str = "", problem: str = "") -> str:
    """The login form, with the problem of the last attempt."""
    alert = f'<p class="alert" role="alert" id="problem">{escape(problem)}</p>' if problem else ""
    described = ' aria-describedby="problem"' if problem else ""
    return _page(
        "Sign in",
        f"""
{alert}
<form method="post" action="/login?return_to={quote(return_to, safe="")}" class="panel">
<label for="email">E-mail address</label>
<input id="email" name="email" type="email" autocomplete="username" required value="{escape(email)}"{described}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required{described}>
<label class="check"><input name="remember" type="checkbox" value="true" checked>
<span>Stay signed in when the browser is closed</span></label>
<button>Sign in</button>
</form>""",
        None,
    )


def protected(identity: Identity) -> str:
    """A page for those who are signed in."""
    return _page(
        "Protected page",
        f"""
<p class="lead">Keyturn says who you are, and this page was made for you.</p>
<dl class="panel">
{_fact("Subject", _code(identity["subject"]))}
{_fact("Role", escape(identity["role"]))}
{_fact("Session", _code(identity["session"]))}
</dl>""",
        identity,
        here="/protected",
    )


def session(identity: Identity, me: Mapping[str, Any] | None, entries: Iterable[Entry]) -> str:
    """The deadlines of a session, its journal and the two ways to end it."""
    now = datetime.now(UTC)
    return _page(
        "My session",
        f"""
{_deadlines(identity, me, now)}
<h2>What this application saw</h2>
<ol class="journal">{"".join(f"<li><span>{escape(text)}</span>{_moment(at, now)}</li>" for at, text in entries)}</ol>
<h2>End it</h2>
<form method="post" action="/logout" class="row">
<button name="reach" value="this">Log out</button>
<button name="reach" value="all" class="quiet">Log out everywhere</button>
</form>""",
        identity,
        here="/session",
    )


def problem(title: str, text: str, identity: Identity | None = None) -> str:
    """A refusal, or an outage."""
    return _page(title, f'<p class="lead">{escape(text)}</p><p><a href="/">To the start page</a></p>', identity)


def _deadlines(identity: Identity, me: Mapping[str, Any] | None, now: datetime) -> str:
    if me is None:
        return '<p class="lead">Keyturn has just renewed this session. Load the page again to see its deadlines.</p>'
    facts, user = me["session"], me["user"]
    refreshed = "not yet" if facts["rotated_at"] == facts["created_at"] else _moment(facts["rotated_at"], now)
    return f"""
<dl class="panel">
{_fact("Signed in as", escape(user["email"]))}
{_fact("Signed in at", _moment(facts["created_at"], now))}
{_fact("Refreshed last", refreshed)}
{_fact("Ends, unless you come back before", _moment(facts["idle_expires_at"], now))}
{_fact("Ends in any case", _moment(facts["absolute_expires_at"], now))}
{_fact("Session", _code(identity["session"]))}
</dl>"""


def _fact(name: str, value: str) -> str:
    return f"<div><dt>{name}</dt><dd>{value}</dd></div>"


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _moment(at: datetime, now: datetime) -> str:
    at = at.astimezone(UTC)
    shown = f"{at.day} {at:%b %Y, %H:%M:%S} UTC"
    return f'<time datetime="{at.isoformat(timespec="seconds")}">{shown}</time> <small>{_distance(at - now)}</small>'


def _distance(ahead: timedelta) -> str:
    seconds = round(abs(ahead).total_seconds())
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds >= size:
            # A deadline is rounded: one of seven days is "in 7 days" a second later too.
            count = round(seconds / size) if ahead > timedelta() else seconds // size
            words = f"{count} {unit}{'' if count == 1 else 's'}"
            return f"in {words}" if ahead > timedelta() else f"{words} ago"
    return "now"


def _page(title: str, body: str, identity: Identity | None, *, here: str = "") -> str:
    places = (("/", "Start"), ("/protected", "Protected page"), ("/session", "My session")) if identity else ()
    links = "".join(
        f'<a href="{path}"{" aria-current=page" if path == here else ""}>{name}</a>' for path, name in places
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} · Keyturn example</title>
<link rel="stylesheet" href="/static/style.css">
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
</head>
<body>
<header><div class="bar">
<a class="brand" href="/"><img src="/static/icon.svg" alt="" width="28" height="28">Keyturn example</a>
<nav aria-label="Pages">{links}</nav></div></header>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""
