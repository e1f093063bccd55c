"""Changes of a policy and their consequence: sessions that it has ended stay ended under a longer one.

The command line and the API are two callers of the same function.
"""

from __future__ import annotations

from ..actors import Actor
from ..policies import Policies, Stored
from ..policies.members import Values
from .sweeping import Sweeping


class PolicyChanges:
    """Changes policies."""

    def __init__(self, policies: Policies, sweeping: Sweeping) -> None:
        self._policies = policies
        self._sweeping = sweeping

    async def change(self, scope: str, values: Values, *, by: Actor) -> Stored:
        """As `Policies.change`, and first marks the sessions that would come back to life under a longer lifetime.

        A session that is over only by the policy in force has no mark on its row. Under a longer policy it could be
        refreshed again, although its client was told that it is over. A stolen token would come back with it. So before
        idle or absolute lifetime grows, each such session is marked with the deadline that it had. This walks the table
        once. If a call breaks off, nothing has changed but some marks: call it again. A session that is over since the
        walk has passed it goes on, as if the change had come a moment earlier.

        Raises:
            NotFound, InvalidRequest, TemporarilyUnavailable: as `Policies.change`.
        """
        before = await self._policies.find(scope)
        after = before.changed(values)
        now, then = before.in_force, after.in_force
        if then.idle_lifetime > now.idle_lifetime or then.absolute_lifetime > now.absolute_lifetime:
            await self._policies.load()  # the marks get their reasons by the policy in force in this process
            await self._sweeping.end_over(by=by)
        return await self._policies.change(scope, values, by=by)
