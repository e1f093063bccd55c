"""All that is wrong with the settings, said at once: values, rules on several of them, and sources."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .errors import WrongSettings
from .place import Place
from .printable import printable
from .settings_sources import LONGEST_NAME, PREFIX

RULES = "\n"
"""Stands between the rules on several settings that are broken, in the one error that Pydantic takes for them."""

_P = TypeVar("_P", bound=Place)


def validated(model: type[_P], values: Mapping[str, Any], faults: Sequence[str]) -> _P:
    """The settings of these values.

    Args:
        model: which settings.
        values: what the sources say, by the names of the settings.
        faults: what is wrong with the sources.

    Raises:
        WrongSettings: for the faults and for whatever is wrong with the values. No message repeats a value.
    """
    try:
        found = model.model_validate(values)
    except ValidationError as e:
        alone = {str(error["loc"][0]) for error in _errors(e) if error["loc"]}
        said = [*faults, *(_in_words(error, model.model_fields) for error in _errors(e) if error["loc"])]
        rules = _rules(e)
        if alone:
            rules = _broken(model, {name: value for name, value in values.items() if name not in alone})
        said += _judged(rules, said)
    else:
        if not faults:
            return found
        said = list(faults)
    raise WrongSettings("; ".join(said))


def _broken(model: type[Place], values: Mapping[str, Any]) -> list[str]:
    """The rules that these values break. Pydantic asks rules on several settings only if each value alone is right."""
    try:
        model.model_validate(values)
    except ValidationError as e:
        return _rules(e)
    return []


def _judged(rules: Sequence[str], said: Sequence[str]) -> Iterator[str]:
    """The rules without those on a setting that is wrong alone or could not be read: its value is not known."""
    unknown = {name for line in said for name in re.findall(rf"^({PREFIX}[A-Z0-9_]+?)(?:_FILE)?:", line)}
    if all(line.startswith(PREFIX) for line in said):  # else a whole source is missing, and any setting with it
        yield from (rule for rule in rules if unknown.isdisjoint(re.findall(rf"{PREFIX}[A-Z0-9_]+", rule)))


def _rules(errors: ValidationError) -> list[str]:
    return [rule for error in _errors(errors) if not error["loc"] for rule in _text(error).split(RULES)]


def _errors(errors: ValidationError) -> list[ErrorDetails]:
    return errors.errors(include_input=False, include_context=False, include_url=False)


def _text(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Value error, ")


def _in_words(error: ErrorDetails, fields: Mapping[str, FieldInfo]) -> str:
    name, text = str(error["loc"][0]), _text(error)
    if error["type"] == "extra_forbidden":
        text = "there is no such setting"
    elif error["type"] == "string_too_short":
        text = "must not be empty"
    elif error["type"] != "value_error" and (values := accepted(fields[name])):
        text = f"must be {values}"
    return f"{printable(PREFIX + name.upper(), LONGEST_NAME)}: {text}"


def accepted(field: FieldInfo) -> str:
    """The values that a setting accepts, in words; empty if only the setting's description tells them."""
    if field.annotation is bool:
        return "true or false"
    if get_origin(field.annotation) is Literal:
        return " or ".join(map(str, get_args(field.annotation)))
    # Pydantic keeps each bound in an object of its own, as the attribute ``ge`` or ``le``.
    least, most = (next((getattr(m, b) for m in field.metadata if hasattr(m, b)), None) for b in ("ge", "le"))
    if isinstance(least, timedelta) and isinstance(most, timedelta):
        second = timedelta(seconds=1)
        return f"{least // second} to {most // second} seconds"
    return f"{least} to {most}" if most is not None else ""
