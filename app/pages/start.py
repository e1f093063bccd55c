"""The start page: the state of the service, and where to read on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .html_page import MARK, html_page
from .markup import code, element, link, listing


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that the page tells. All are public: none is about users, and none is secret."""

    database: str
    """A word of /readyz."""
    cache: str
    """A word of /readyz."""
    version: str
    issuer: str
    """The `iss` of access tokens."""
    issuer_is_set: bool
    """False: nobody has named an issuer, and `issuer` is the one of the embedded default."""
    address: str
    """The URL of the service for clients."""
    algorithm: str | None
    """The algorithm that signs access tokens now. None if this process has no keys in force."""
    elsewhere: Mapping[str, str]
    """Names and addresses of the project's own pages, as the package's metadata has them."""


_DATABASE = {"ok": "Reachable.", "away": "Away. Sign-in, refresh and logout wait for it."}
_CACHE = {
    "complete": "In use.",
    "not filled": "Being filled. The database answers in its place.",
    "may evict": "It may evict keys. The database answers in its place.",
    "not identified": "It gives no identity. The database answers in its place.",
    "another Redis": "Other instances use another one. The database answers in its place.",
    "shared with another Keyturn": "Another Keyturn uses it too. The database answers in its place.",
    "refuses commands": "It refuses commands. The database answers in its place.",
    "away": "Away. The database answers in its place.",
    "none": "None is set. The database answers by itself.",
}


def start(facts: Facts) -> bytes:
    """The page."""
    kind, words = _state(facts)
    algorithm = code(facts.algorithm) if facts.algorithm else "No key is in force at the moment."
    published = facts.algorithm not in {None, "HS256"}
    keys = [" · ", link(".well-known/jwks.json", "public keys")] if published else []
    return html_page(
        "Keyturn",
        element(
            "main",
            element("h1", MARK, "Keyturn"),
            element("p", "Sign in, refresh, log out, verify."),
            element("p", element("span", class_="light"), words, class_=f"state {kind}", role="status"),
            element(
                "dl",
                _fact("Issuer", *_issuer(facts)),
                _fact("Version", code(facts.version)),
                _fact("Signs with", algorithm, *keys),
                _fact("Database", _DATABASE[facts.database]),
                _fact("Redis", _CACHE[facts.cache]),
            ),
            element("h2", "Read on"),
            element(
                "ul",
                _reading("docs", "API reference", "Each endpoint, with its fields, answers and refusals."),
                _reading("openapi.json", "openapi.json", "The contract. Generators make clients from it."),
                _reading("readyz", "Readiness", "The state of this process, for programs."),
                *(_reading(url, name, url) for name, url in facts.elsewhere.items()),
                class_="cards",
            ),
            *([] if facts.elsewhere else [element("p", *_IN_THE_SOURCE, class_="aside")]),
            element("h2", "Try it"),
            listing(
                'echo \'{"email": "…", "password": "…"}\' |\n'
                f"  curl {facts.address.rstrip('/')}/auth/login \\\n  -H 'Content-Type: application/json' -d @-"
            ),
        ),
        kind="start",
    )


_IN_THE_SOURCE = (
    "The documentation comes with the source: ",
    code("README.md"),
    " is its door, and ",
    code("docs/"),
    " has the pages.",
)


def _state(facts: Facts) -> tuple[str, str]:
    if facts.database != "ok" or facts.algorithm is None:
        return "bad", "Not ready: the database is away." if facts.database != "ok" else "Not ready: no key is in force."
    if facts.cache == "not filled":
        return "weak", "Ready. Redis is being filled."
    if facts.cache not in {"complete", "none"}:
        return "weak", "Ready, without Redis."
    return "good", "Ready."


def _issuer(facts: Facts) -> tuple[str, ...]:
    if facts.issuer_is_set:
        return (code(facts.issuer),)
    return ("Unset. Access tokens name ", code(facts.issuer), "; ", code("KEYTURN_ISSUER"), " changes it.")


def _fact(name: str, *content: str) -> str:
    return element("div", element("dt", name), element("dd", *content))


def _reading(href: str, name: str, about: str) -> str:
    return element("li", link(href, element("strong", name), element("span", about)))
