"""The two doors through which a request comes to its endpoint: the fast one and FastAPI's.

The doors differ in how they find the endpoint, and in nothing else: both call its `answer` with the same request.
FastAPI's matching alone costs more than all other work on a request. So plain requests take the fast door, and
FastAPI gets all others: those with another path or method, with a query, or with a header field that is not plain.

FastAPI reads no parameter, because `answer` reads them behind either door. So the routes that serve are Starlette's,
which cost nothing to make. FastAPI's own routes are made for the OpenAPI document alone.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Annotated, Any, Generic
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Response
from fastapi.routing import APIRoute
from fastapi.security import APIKeyCookie, HTTPBearer
from pydantic import WithJsonSchema
from pydantic.json_schema import SkipJsonSchema
from starlette import requests
from starlette.routing import Router

from .answers import Answer
from .bodies import FORM, JSON, OF_STANDARDS, is_form
from .documentation import IDENTIFIERS, refused
from .endpoints import Endpoint, Parts
from .request import Request

USUAL_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

# A field is plain if the edge or `Request` reads it, or if it means nothing to any endpoint. Any other field may mean
# something to a check of the slow door, now or later: DPoP, Prefer, If-Match and so on.
_READ = (
    b"host content-type content-length authorization x-request-id sec-keyturn-set-cookie cookie origin sec-fetch-site "
    b"idempotency-key"
)
_ABOUT_THE_CLIENT = (
    b"user-agent accept accept-charset accept-encoding accept-language cache-control connection dnt keep-alive pragma "
    b"priority referer sec-gpc upgrade-insecure-requests"
)
# Browsers add these to each request, most of them over https alone.
_OF_BROWSERS = (
    b"sec-fetch-mode sec-fetch-dest sec-fetch-user sec-fetch-storage-access sec-ch-ua sec-ch-ua-mobile "
    b"sec-ch-ua-platform sec-ch-ua-platform-version sec-ch-ua-arch sec-ch-ua-bitness sec-ch-ua-wow64 sec-ch-ua-model "
    b"sec-ch-ua-form-factors sec-ch-ua-full-version sec-ch-ua-full-version-list"
)
_OF_PROXIES = (
    b"via forwarded x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-prefix x-forwarded-proto "
    b"x-forwarded-scheme x-forwarded-server x-real-ip x-scheme cdn-loop"
)
# Traefik, Caddy, nginx, ingress-nginx and Envoy describe their client's request to the endpoint for proxies by these.
_OF_FORWARD_AUTH = (
    b"x-forwarded-method x-forwarded-uri x-original-method x-original-uri x-original-url x-original-remote-addr "
    b"x-auth-request-redirect x-sent-from x-envoy-expected-rq-timeout-ms x-envoy-internal x-envoy-attempt-count "
    b"x-envoy-decorator-operation x-envoy-original-path"
)
_OF_TRACES = (
    b"traceparent tracestate baggage x-correlation-id x-cloud-trace-context x-amzn-trace-id b3 x-b3-traceid "
    b"x-b3-spanid x-b3-parentspanid x-b3-sampled x-b3-flags x-ot-span-context"
)
PLAIN_FIELDS = frozenset(
    b" ".join((_READ, _ABOUT_THE_CLIENT, _OF_BROWSERS, _OF_PROXIES, _OF_FORWARD_AUTH, _OF_TRACES)).split()
)
"""The names of header fields with which a request may take the fast door."""

_IDENTIFIER = re.compile(r"\{(\w+)\}")

_BEARER = HTTPBearer(
    auto_error=False, scheme_name="bearer", bearerFormat="JWT", description="An access token of a login or refresh."
)
_COOKIE = APIKeyCookie(
    name="__Host-Http-keyturn-access",
    auto_error=False,
    scheme_name="cookie",
    description="The cookie of a login with `mode: cookie`. Its name depends on the settings (docs/web.md).",
)
_REFRESH = APIKeyCookie(
    name="__Host-Http-keyturn-refresh",
    auto_error=False,
    scheme_name="refresh_cookie",
    description="The cookie of a login with `mode: cookie` or `split`. Its name depends on both, and on the settings.",
)


class Doors(Generic[Parts]):
    """Both doors to a set of endpoints. `parts` is set before the first request comes."""

    parts: Parts

    def __init__(self, endpoints: Iterable[Endpoint[Parts]]) -> None:
        self._endpoints = tuple(endpoints)
        self._with_query = frozenset(endpoint.path for endpoint in self._endpoints if endpoint.query)
        self._fast = {
            (method, endpoint.path): endpoint.answer
            for endpoint in self._endpoints
            if endpoint.fast
            for method in (USUAL_METHODS if endpoint.any_method else (endpoint.method,))
        }

    def fast(self, request: Request) -> Awaitable[Answer] | None:
        """The fast door. Returns the awaitable answer, or None if the request has to take FastAPI's door."""
        answer = self._fast.get((request.method, request.path))
        if answer is None or not request.fields.keys() <= PLAIN_FIELDS:
            return None
        if request.query and request.path not in self._with_query:
            return None
        request.route = request.path  # no path of this door has identifiers
        return answer(self.parts, request)

    def add_to(self, router: Router) -> None:
        """Makes FastAPI's door: the routes that serve."""
        for endpoint in self._endpoints:
            methods = [] if endpoint.any_method else [endpoint.method]  # Starlette adds HEAD to GET; none: any method
            router.add_route(endpoint.path, self._handler(endpoint), methods)

    def describe_to(self, router: APIRouter) -> None:
        """Makes the routes that only the OpenAPI document is made from. None of them ever serves."""
        for endpoint in self._endpoints:
            # Leave the good answer out where it has no header fields, because FastAPI warns about the needless entry.
            good: dict[int | str, dict[str, Any]] = (
                {endpoint.status: {"headers": dict(endpoint.response_headers)}} if endpoint.response_headers else {}
            )
            refusals = refused(*endpoint.refusals)
            for status, headers in endpoint.refusal_headers.items():
                refusals[status]["headers"] = {**refusals[status]["headers"], **headers}
            router.add_api_route(
                endpoint.path,
                _described(endpoint),
                methods=[endpoint.method],
                description=inspect.cleandoc(endpoint.answer.__doc__ or ""),
                tags=[endpoint.tag],
                status_code=endpoint.status,
                response_model=endpoint.model,
                response_description=endpoint.response_description,
                responses={**good, **refusals, **endpoint.responses},
                openapi_extra={"security": [{}]} if endpoint.credentials.startswith("optional") else None,
                generate_unique_id_function=_name,  # FastAPI's own ids begin with a method
            )

    def _handler(self, endpoint: Endpoint[Parts]) -> Callable[[requests.Request], Coroutine[Any, Any, Response]]:
        async def handler(request: requests.Request) -> Response:
            ours = Request.of(request.scope)
            ours.identifiers, ours.route = request.path_params, endpoint.path
            return response(await endpoint.answer(self.parts, ours))

        return handler


def _name(route: APIRoute) -> str:
    return route.name


def _described(endpoint: Endpoint[Any]) -> Callable[..., None]:
    """A function whose name and signature FastAPI documents: the operation's id, parameters, body and security."""

    def operation() -> None:
        """Does nothing: no route that serves has it."""

    operation.__name__ = endpoint.name
    operation.__signature__ = _signature(endpoint)  # type: ignore[attr-defined]  # FastAPI reads it
    return operation


def _signature(endpoint: Endpoint[Any]) -> inspect.Signature:
    annotations: dict[str, tuple[Any, Any]] = {}
    schemes = {
        "none": (),
        "optional bearer": (_BEARER, _COOKIE, _REFRESH),
        "bearer": (_BEARER, _COOKIE),
    }[endpoint.credentials]
    for scheme in schemes:
        annotations[f"_{scheme.scheme_name}"] = (Annotated[Any, Depends(scheme)], inspect.Parameter.empty)
    for name in _IDENTIFIER.findall(endpoint.path):
        kind: Any = UUID if name.endswith("_id") else str
        annotations[name] = (Annotated[kind, Path(description=IDENTIFIERS[name])], inspect.Parameter.empty)
    for each in endpoint.query:
        one, query = dict(each.schema), Query(description=each.description)
        kind = Annotated[str, WithJsonSchema(one)]
        if each.several:
            kind = Annotated[list[str], WithJsonSchema({"type": "array", "items": one})]
        annotations[each.name] = (Annotated[kind | SkipJsonSchema[None], query], None)  # type: ignore[misc]  # made here
    for field in endpoint.fields:
        text: Any = Annotated[str, WithJsonSchema(dict(field.schema))]
        header = Header(alias=field.name, description=field.description)
        annotation = Annotated[text | SkipJsonSchema[None], header]
        annotations[f"_{field.name.replace('-', '_')}"] = (annotation, None)
    if endpoint.body is not None:
        form = endpoint.path.startswith(OF_STANDARDS) and is_form(endpoint.path)
        body = Body(media_type=FORM if form else JSON)
        annotations["body"] = (
            (Annotated[endpoint.body | SkipJsonSchema[None], body], None)  # type: ignore[misc]  # made here
            if endpoint.body_is_optional
            else (Annotated[endpoint.body, body], inspect.Parameter.empty)
        )
    return inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for name, (annotation, default) in annotations.items()
        ]
    )


def response(answer: Answer) -> Response:
    """An answer in the type that FastAPI's routes and handlers return."""
    status, fields, body = answer
    given = Response(body, status)
    given.raw_headers = list(fields)
    return given
