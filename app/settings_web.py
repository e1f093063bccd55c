"""The settings about browsers: cookies, and the origins whose pages may call Keyturn."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from .place import Place
from .settings_values import Seconds, checked_domain, checked_origins, on_loopback, within


class WebSettings(Place):
    """The settings about browsers."""

    cookies: Annotated[
        bool,
        Field(description="Whether browsers may get their tokens in cookies. If the issuer is http, only on loopback."),
    ] = True
    login_mode: Annotated[
        Literal["bearer", "cookie", "split"],
        Field(description="Mode of a sign-in that names none: where its tokens travel (docs/web.md)."),
    ] = "bearer"
    remember: Annotated[
        bool,
        Field(description="Whether cookies outlive the browser session, for a sign-in that does not say."),
    ] = True
    cookie_domain: Annotated[
        str | None,
        BeforeValidator(checked_domain),
        Field(description="Domain of the cookies, as `example.com`: all its hosts get them. Unset: this host alone."),
    ] = None
    cookie_same_site: Annotated[
        Literal["strict", "lax"],
        Field(description="`lax`: cookies also come with a link from another site (`SameSite=Lax`)."),
    ] = "strict"
    cookie_partitioned: Annotated[
        bool, Field(description="Whether cookies are kept apart for each top-level site (CHIPS).")
    ] = False
    allowed_origins: Annotated[
        str,
        BeforeValidator(checked_origins),
        Field(
            description="Origins, comma-separated, whose pages may call Keyturn with cookies: `https://host[:port]`."
        ),
    ] = ""
    hsts: Annotated[
        Seconds,
        Field(
            ge=timedelta(0),
            le=timedelta(days=730),
            description="Seconds for which browsers reach this host by https alone (RFC 6797); 0: they are not told.",
        ),
    ] = timedelta(0)
    pages: Annotated[
        bool,
        Field(description="Whether `/` and `/docs` are pages to read: state, and the reference of the API."),
    ] = True

    def web_rules(self, issuer: str, retry_window: timedelta) -> Iterator[tuple[bool, str]]:
        """For each rule on these settings, the issuer and the retry window: whether it is broken, and its message."""
        parts = urlsplit(issuer)
        host = parts.hostname or ""
        yield (
            self.cookies and parts.scheme == "http" and not on_loopback(host),
            "KEYTURN_ISSUER must be https or on loopback, so that nobody reads cookies (or: KEYTURN_COOKIES=false)",
        )
        yield (
            not self.cookies and self.login_mode != "bearer",
            "KEYTURN_LOGIN_MODE must be bearer with KEYTURN_COOKIES=false",
        )
        yield (
            not retry_window and self.login_mode != "bearer",
            "KEYTURN_LOGIN_MODE must be bearer with KEYTURN_RETRY_WINDOW=0: two tabs of a browser refresh at once",
        )
        yield (
            self.cookie_partitioned and parts.scheme != "https",
            "KEYTURN_COOKIE_PARTITIONED needs an https KEYTURN_ISSUER",
        )
        yield (
            self.cookie_domain is not None and not within(host, self.cookie_domain),
            "KEYTURN_COOKIE_DOMAIN must be the host of KEYTURN_ISSUER, or a domain above it",
        )
