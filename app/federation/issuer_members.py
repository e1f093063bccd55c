"""The members of an issuer as they are given and told: checked, and as texts of a command or an event. Pure: no I/O.

A list is comma-separated, and a mapping is comma-separated pairs `THEIRS=OURS`. Either may be JSON instead, for values
that hold a comma.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from ..errors import InvalidRequest
from .issuer import Issuer, IssuerSecrets

_Model = TypeVar("_Model", bound=BaseModel)
_PLAIN_NAME = re.compile(r"[a-z]{1,16}(?:_[a-z]{1,16}){0,3}", re.ASCII)
"""The form of a member's name: a few short words. A secret in the place of a name is not repeated."""


def issuer_of(members: Mapping[str, Any]) -> Issuer:
    """The issuer of these members, without its secrets.

    Raises:
        InvalidRequest: a member is unknown, missing or not valid. The sentence names the member and repeats no value.
    """
    return _made(Issuer, members)


def secrets_of(members: Mapping[str, Any]) -> IssuerSecrets:
    """The secrets of an issuer, of which some may be absent.

    Raises:
        InvalidRequest: as `issuer_of`.
    """
    return _made(IssuerSecrets, members)


def _made(model: type[_Model], members: Mapping[str, Any]) -> _Model:
    try:
        return model.model_validate(dict(members))
    except ValidationError as e:
        error = e.errors(include_url=False, include_context=False, include_input=False)[0]
    raise InvalidRequest(f"issuer: {error['type']}", description=f"{_in_words(error)}.")  # without the error's context


def _in_words(error: Any) -> str:
    text = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    if not error["loc"]:
        return str(text)  # a rule on several members, which names them
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return f"{name}: there is no such member" if _PLAIN_NAME.fullmatch(name) else "there is an unknown member"
    return f"{name}: is missing" if error["type"] == "missing" else f"{name}: {text}"


def value_of(member: str, text: str) -> Any:
    """The value of a member that a command gives as text. `Issuer` checks it.

    Raises:
        ValueError: the text is not a list, or no mapping. The message repeats nothing of it.
    """
    kind = get_origin(Issuer.model_fields[member].annotation)
    if kind not in {tuple, dict}:
        return text
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("is not valid JSON") from None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if kind is tuple:
        return parts
    pairs = [part.rpartition("=") for part in parts]
    if not all(theirs and ours for theirs, _, ours in pairs):
        raise ValueError("must be THEIRS=OURS, comma-separated")
    return {theirs: ours for theirs, _, ours in pairs}


def shown(value: Any) -> str:
    """A value as one text, for an event or a table."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case tuple() | list():
            return ",".join(map(str, value))
        case dict():
            return ",".join(f"{theirs}={ours}" for theirs, ours in value.items())
        case _:
            return str(value)
