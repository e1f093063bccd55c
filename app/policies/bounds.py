"""The bounds of a policy: it may be stricter than the settings, and never laxer. Pure: no I/O.

One function, `cut`, knows the rules. A change whose values it would cut is refused. A row that became laxer than
settings that changed later is cut when it is read. So no way leads around a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, get_args

from ..errors import InvalidRequest
from ..settings_passwords import LONGEST_MINIMUM
from .members import SETTINGS, Values, shown
from .policy import Mode, Policy

_SECOND = timedelta(seconds=1)

MOST_SESSIONS = 1000
"""The highest limit of sessions, as for the setting."""

_MOST_JITTER = timedelta(seconds=1200)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The ceiling of every policy, and the rules between members: the rules between settings are the same."""

    ceiling: Policy
    """The policy of the settings."""
    cookies: bool = True
    """Whether this deployment has cookies: without them, each sign-in is in mode "bearer"."""

    def cut(self, wanted: Values) -> Policy:
        """The policy in force for a row: where a value is laxer than a rule allows, the strictest that it allows.

        The cut never makes a lifetime longer than the row has it, down to the least that the settings allow too.
        """
        most = self.ceiling

        def lifetime(member: str, least: int, *others: timedelta) -> timedelta:
            value: timedelta | None = wanted.get(member)
            bound: timedelta = min((getattr(most, member), *others))
            return bound if value is None else min(max(value, least * _SECOND), bound)

        absolute = lifetime("absolute_lifetime", 60)
        idle = lifetime("idle_lifetime", 60, absolute)
        access = lifetime("access_lifetime", 2, idle)
        third = access // _SECOND // 3 * _SECOND
        window = lifetime("retry_window", 0, third)
        return Policy(
            idle_lifetime=idle,
            absolute_lifetime=absolute,
            retry_window=window,
            access_lifetime=access,
            access_jitter=self._jitter(wanted.get("access_jitter"), third),
            session_limit=self._limit(wanted.get("session_limit")),
            password_length=self._password_length(wanted.get("password_length")),
            reauthentication_age=lifetime("reauthentication_age", 60),
            mode=self._mode(wanted.get("mode"), window),
            remember=most.remember if wanted.get("remember") is None else bool(wanted["remember"]),
            scopes=most.scopes if wanted.get("scopes") is None else most.scopes & wanted["scopes"],
        )

    def _jitter(self, wanted: timedelta | None, third: timedelta) -> timedelta:
        # Jitter only shortens. So more of it is never laxer, and less of it never passes the ceiling of the lifetime.
        value = self.ceiling.access_jitter if wanted is None else max(wanted, timedelta(0))
        return min(value, third, _MOST_JITTER)

    def _limit(self, wanted: int | None) -> int | None:
        most = self.ceiling.session_limit
        return most if wanted is None else min(max(wanted, 1), MOST_SESSIONS if most is None else most)

    def _password_length(self, wanted: int | None) -> int:
        # The one member that is stricter the larger it is.
        least = self.ceiling.password_length
        return least if wanted is None else min(max(wanted, least), LONGEST_MINIMUM)

    def _mode(self, wanted: object, window: timedelta) -> Mode:
        mode = wanted if wanted in get_args(Mode) else self.ceiling.mode
        # Without a retry window, two tabs of a browser that refresh at once would look like theft.
        return mode if self.cookies and window else "bearer"  # type: ignore[return-value]  # `in get_args`

    def cuts(self, wanted: Values) -> Mapping[str, Any]:
        """The members that a rule would cut, each with the value that it would get."""
        given = {name: getattr(self.ceiling, name) if wanted.get(name) is None else wanted[name] for name in SETTINGS}
        allowed = self.cut(wanted)
        return {name: getattr(allowed, name) for name in SETTINGS if getattr(allowed, name) != given[name]}

    def check(self, wanted: Values) -> None:
        """Checks a row before it is written.

        Raises:
            InvalidRequest: a value is laxer than the settings, or does not go with another member.
        """
        for name in self.cuts(wanted):
            raise InvalidRequest("laxer than a rule", description=f"{name}: {self.rule(name)}.")

    def rule(self, member: str) -> str:
        """The values that a member may have, in words."""
        least, other = _RULES.get(member, (None, ""))
        most = shown(getattr(self.ceiling, member))
        if least is None:
            return self._other_rule(member, most)
        return f"must be {least} to {most} seconds (the setting){other}"

    def _other_rule(self, member: str, most: Any) -> str:
        if member == "session_limit":
            return f"must be 1 to {most or MOST_SESSIONS}"
        if member == "password_length":
            return f"must be {most} (the setting) to {LONGEST_MINIMUM}"
        if member == "access_jitter":
            return "must be at most a third of access_lifetime, and 1200 seconds"
        if member == "scopes":
            return "must be some of the scopes of the setting" if most else "must be empty: the setting names none"
        return "must be bearer, as this service has no cookies, or retry_window is 0"


_RULES = {
    "access_lifetime": (2, ", and not above idle_lifetime"),
    "idle_lifetime": (60, ", and not above absolute_lifetime"),
    "absolute_lifetime": (60, ""),
    "retry_window": (0, ", and at most a third of access_lifetime"),
    "reauthentication_age": (60, ""),
}
"""The least seconds of a duration, and the rule that binds it to another member."""
