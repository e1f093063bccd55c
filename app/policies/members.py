"""The members of a policy: the setting behind each, and the forms of its values outside. Pure: no I/O.

Inside, a value has the type of its field of `Policy`. Outside, in JSON and in a command, durations are whole seconds
and scopes one text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeAlias, get_args

from ..settings_values import scopes_in, whole_seconds
from .policy import Mode

Values: TypeAlias = Mapping[str, Any]
"""Values by the names of members. None: the value of the settings."""

SETTINGS = {
    "access_lifetime": "access_token_lifetime",
    "access_jitter": "access_token_jitter",
    "idle_lifetime": "refresh_token_lifetime",
    "absolute_lifetime": "session_lifetime",
    "retry_window": "retry_window",
    "session_limit": "session_limit",
    "password_length": "password_length",
    "reauthentication_age": "reauthentication_age",
    "mode": "login_mode",
    "remember": "remember",
    "scopes": "scopes",
}
"""The members of a policy in the order of every list, each with the name of its setting."""


def value_of(member: str, given: object) -> Any:
    """The value of a member that a command or a JSON body gives.

    Raises:
        ValueError: the value has not the member's form. The message never repeats the value.
    """
    return _FORMS.get(member, whole_seconds)(given)


def shown(value: Any) -> Any:
    """A value as JSON and tables have it."""
    if isinstance(value, timedelta):
        return value // timedelta(seconds=1)
    return " ".join(sorted(value)) if isinstance(value, frozenset) else value


def _number(given: object) -> object:
    if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) <= 9:  # noqa: PLR2004  # digits
        given = int(given)
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    raise ValueError("must be a whole number")


def _mode(given: object) -> object:
    if given not in get_args(Mode):
        raise ValueError(f"must be {' or '.join(get_args(Mode))}")
    return given


def _flag(given: object) -> object:
    if isinstance(given, bool):
        return given
    if given not in {"true", "false"}:
        raise ValueError("must be true or false")
    return given == "true"


def _scopes(given: object) -> object:
    return scopes_in(str(given))


_FORMS: Mapping[str, Callable[[object], object]] = {
    "session_limit": _number,
    "password_length": _number,
    "mode": _mode,
    "remember": _flag,
    "scopes": _scopes,
}
"""The forms of all members that are no durations."""
