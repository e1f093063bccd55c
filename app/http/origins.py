"""Origins: whose pages may call Keyturn in a browser, and the header fields that tell the browser so.

Two rules use them, which protect from different things:

1. CSRF. A page of any site can make a browser send a request with the user's cookies. So a request that changes
   something by a cookie must say that it comes from a page of an origin that is trusted (`is_own`).
2. CORS (the Fetch standard, "CORS protocol"). A browser shows an answer to a page of another origin only if the answer
   names that origin. Keyturn names only those that the operator lists.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import timedelta
from urllib.parse import urlsplit

from ..errors import CrossSite
from .answers import Answer, Fields
from .heads import VERIFY
from .request import Request

_METHODS = (b"GET", b"HEAD", b"POST", b"PATCH", b"DELETE")
_HEADERS = (b"authorization", b"content-type", b"idempotency-key", b"x-request-id")
_PREFLIGHT_LASTS = b"600"  # seconds; a change of the list reaches each browser after this time

_ON_EVERY_ANSWER = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)
_WITH_CREDENTIALS = (b"access-control-allow-credentials", b"true")
_EXPOSED = (
    b"access-control-expose-headers",
    b"X-Request-Id, Retry-After, RateLimit, RateLimit-Policy, WWW-Authenticate",
)
_ASKED_METHOD, _ASKED_HEADERS = b"access-control-request-method", b"access-control-request-headers"

_PREFLIGHTS_VARY = (b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers")

_REFUSED = "A page of this origin may not send this method or these header fields."

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Origins:
    """The trusted origins of one process, and the header fields that each answer gets.

    An origin is compared as a whole, byte by byte, with the one spelling that browsers send (RFC 6454 section 6.2). So
    no rule about prefixes, suffixes, ports or letter case can be bent.

    Args:
        address: the public URL of this service.
        allowed: further origins, as the setting was checked.
        hsts: how long browsers reach this host by https alone; zero tells them nothing.
    """

    def __init__(self, address: str = "", allowed: Iterable[str] = (), hsts: timedelta = timedelta(0)) -> None:
        foreign = [origin.encode() for origin in allowed]
        own = _origin_of(address)
        self._trusted = frozenset(foreign if own is None else (own, *foreign))
        fixed = list(_ON_EVERY_ANSWER)
        # RFC 6797 section 7.2: no answer over plain http has the field.
        if hsts and address.startswith("https:"):
            fixed.append((b"strict-transport-security", b"max-age=%d" % (hsts // timedelta(seconds=1))))
        self._fields = (*fixed, (b"vary", b"Origin")) if foreign else tuple(fixed)
        self._fields_for_preflights = (*fixed, _PREFLIGHTS_VARY)
        self._fields_for = {
            origin: (*self._fields, (b"access-control-allow-origin", origin), _WITH_CREDENTIALS, _EXPOSED)
            for origin in foreign
        }

    def is_own(self, headers: Fields) -> bool:
        """Whether the header fields say that the request comes from a page of a trusted origin.

        No page can write either field: the Fetch standard forbids their names ("forbidden request-header"). A browser
        writes ``Origin: null`` for a page without an origin, and for a form of a page that hides its address. Only
        Sec-Fetch-Site tells these two apart. Several Origin fields are of no browser.
        """
        origins = [value for name, value in headers if name == b"origin"]
        if len(origins) > 1:
            return False
        sites = [value for name, value in headers if name == b"sec-fetch-site"]
        return sites == [b"same-origin"] or not self._trusted.isdisjoint(origins)

    def fields(self, request: Request) -> Fields:
        """The header fields of any answer to this request, the same for a refusal.

        The answer to a preflight lacks those that name an origin, because `preflight` decides about it.
        """
        if not self._fields_for:
            return self._fields
        if _is_preflight(request):
            return self._fields_for_preflights
        fields = self._fields_for.get(request.fields.get(b"origin", b""))
        return self._fields if fields is None or request.has_several(b"origin") else fields

    def preflight(self, request: Request) -> Answer | None:
        """The answer to a preflight: the browser asks whether it may send a page's request. None for any other request.

        Raises:
            CrossSite: the origin is not allowed, or the method or a header field is not.
        """
        if not _is_preflight(request):
            return None
        origin = request.fields[b"origin"]
        if origin not in self._fields_for or request.has_several(b"origin"):
            raise CrossSite("preflight of an origin that is not allowed", description=_REFUSED)
        if request.fields[_ASKED_METHOD] not in _METHODS or request.has_several(_ASKED_METHOD):
            raise CrossSite("preflight for a method that is not allowed", description=_REFUSED)
        # A list may stand in several fields, and its elements may be empty (RFC 9110 sections 5.3 and 5.6.1).
        asked = b",".join(value for name, value in request.headers if name == _ASKED_HEADERS)
        if not {each.strip(b" \t").lower() for each in asked.split(b",")} <= {b"", *_HEADERS}:
            raise CrossSite("preflight for a header field that is not allowed", description=_REFUSED)
        return (
            204,
            (
                (b"access-control-allow-origin", origin),
                (b"access-control-allow-methods", b", ".join(_METHODS)),
                (b"access-control-allow-headers", b", ".join(_HEADERS)),
                _WITH_CREDENTIALS,
                (b"access-control-max-age", _PREFLIGHT_LASTS),
            ),
            b"",
        )


def _origin_of(url: str) -> bytes | None:
    """The origin of a URL as browsers write it: in lower case, without the scheme's own port.

    None for a host that is not ASCII. Browsers and Python write some of these hosts in different ways, so the result
    could be another owner's host. None, too, for an address of a later version (RFC 3986 section 3.2.2).
    """
    parts = urlsplit(url)
    host, port = parts.hostname, parts.port
    if not host or not host.isascii():
        return None
    if ":" in host:
        try:
            host = f"[{ipaddress.IPv6Address(host).compressed}]"
        except ValueError:
            return None
    return f"{parts.scheme}://{host}{'' if port in {None, _DEFAULT_PORTS[parts.scheme]} else f':{port}'}".encode()


def _is_preflight(request: Request) -> bool:
    """Whether the edge answers the request as a preflight (the Fetch standard, "CORS-preflight request").

    No request to `/auth/verify`, or to a path that begins so, is one. There a proxy may pass on its client's preflight,
    and would take a 204 for a permission.
    """
    return (
        request.method == "OPTIONS"
        and request.fields.keys() >= {b"origin", _ASKED_METHOD}
        and not request.path.startswith(VERIFY)
    )


NONE = Origins()
"""No origin is trusted."""
