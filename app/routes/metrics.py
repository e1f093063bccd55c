"""/metrics: the numbers of all worker processes, whichever of them the scrape reached."""

from __future__ import annotations

import hmac

from ..errors import InvalidToken, NotFound, NoToken
from ..http.answers import Answer
from ..http.endpoints import Endpoint
from ..http.request import Request
from ..keyturn import Keyturn


async def metrics(keyturn: Keyturn, request: Request) -> Answer:
    """Get the metrics, in the text format of Prometheus, or in that of OpenMetrics where `Accept` names it.

    Served with the setting `METRICS_TOKEN`, which is the bearer token. With `METRICS_PORT`, that port serves it alone.
    """
    if keyturn.settings.metrics_port is not None or keyturn.settings.metrics_token is None:
        raise NotFound("no such path")
    return await metrics_on_own_port(keyturn, request)


async def metrics_on_own_port(keyturn: Keyturn, request: Request) -> Answer:
    """As `metrics`, on the port that serves nothing else. Without the setting, no token is asked for."""
    from .exposition import exposed  # noqa: PLC0415  # imports a library that only those who scrape need

    _check(keyturn.settings.metrics_bearer, request)
    keyturn.sampling.sample()
    keyturn.sampling.count_soon()
    media_type, body = exposed(request.fields.get(b"accept", b"").decode("latin-1"))
    return 200, [(b"content-type", media_type.encode()), (b"content-length", b"%d" % len(body))], body


def _check(wanted: str | None, request: Request) -> None:
    """Checks the token of a scraper, in constant time.

    Raises:
        InvalidToken: there is none, or another one.
    """
    if wanted is None:
        return
    given = request.bearer()
    if given is None:
        raise NoToken("no token of a scraper")
    if not hmac.compare_digest(given.encode(), wanted.encode()):
        raise InvalidToken("not the token of a scraper")


ENDPOINTS = (
    Endpoint(
        "GET",
        "/metrics",
        metrics,
        tag="health",
        credentials="bearer",
        responses={
            200: {
                "description": "The metrics.",
                "content": {
                    "text/plain": {"schema": {"type": "string"}},
                    "application/openmetrics-text": {"schema": {"type": "string"}},
                },
            }
        },
        refusals=(InvalidToken, NotFound),
    ),
)
