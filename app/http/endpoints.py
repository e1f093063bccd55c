"""An endpoint: the one description from which both doors and the OpenAPI document are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel

from ..errors import Refusal
from .answers import Answer
from .request import Request

Parts = TypeVar("Parts")
"""The parts of the process that answers need. The wire knows nothing about them."""


@dataclass(frozen=True, slots=True)
class QueryParameter:
    """A query parameter. `Request.parameters` has all of its values, `Request.parameter` its only one."""

    name: str
    description: str
    several: bool = False
    """Whether the parameter may stand several times."""
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    """The JSON schema of one value, for the document; `answer` checks the value."""


@dataclass(frozen=True, slots=True)
class HeaderField:
    """A header field of the request that may be left out. `answer` reads it by a method of `Request`."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    """The JSON schema of its value, for the document; `answer` checks the value."""


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[Parts]):
    """An endpoint, as it is served and as it is documented.

    `answer` makes every decision about a request: credentials, the form of its body, the notes for the log. So neither
    door can leave a decision out.
    """

    method: str
    """The method in the OpenAPI document. Where it is GET, HEAD is served too."""
    path: str
    """May have identifiers in braces, as ``/auth/sessions/{session_id}``: `Request.identifier` has them."""
    answer: Callable[[Parts, Request], Awaitable[Answer]]
    """Gives the answer or raises a refusal. Its name is the operation's id, its docstring the operation's description.
    """
    tag: str
    status: int = 200
    """The status of the good answer, for the document."""
    model: type[BaseModel] | None = None
    """The body of the good answer, for the document."""
    example: Mapping[str, Any] = field(default_factory=dict)
    """Members of the good answer's example, for the document, where `http.examples` would show others."""
    response_description: str = "Successful Response"
    response_headers: Mapping[str, Any] = field(default_factory=dict)
    """Header fields of the good answer, for the document."""
    body: type[BaseModel] | None = None
    """The model of the request's body, for the document; `answer` reads it by `Request.content`."""
    body_is_optional: bool = False
    credentials: Literal["none", "optional bearer", "bearer"] = "none"
    """The credentials that the document asks for; `answer` reads them. "bearer" offers the access cookie too, and
    "optional bearer" each cookie. An endpoint whose body is enough asks for none (decision 152).
    """
    query: tuple[QueryParameter, ...] = ()
    fields: tuple[HeaderField, ...] = ()
    """Header fields of the request, for the document: those that mean something to this endpoint alone."""
    refusals: tuple[type[Refusal], ...] = ()
    """The refusals that `answer` raises, for the document. The edge's own are added to each endpoint."""
    refusal_headers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Header fields of refusals, by status, beside those that every refusal of that status has. For the document."""
    responses: Mapping[int | str, dict[str, Any]] = field(default_factory=dict)
    """Further answers, for the document."""
    any_method: bool = False
    """Whether every method is served, also a method that no standard defines (RFC 9110 section 9.1)."""
    fast: bool = False
    """Whether plain requests take the fast door."""

    @property
    def name(self) -> str:
        """The operation's id."""
        return self.answer.__name__
