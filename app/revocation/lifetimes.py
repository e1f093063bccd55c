"""How long keys, marker and readings count: the durations that the proof in docs/revocation.md compares."""

from __future__ import annotations

from datetime import timedelta

from ..settings import LEEWAY, LONGEST_ACCESS_TOKEN

REMEMBERED_FOR = LONGEST_ACCESS_TOKEN + LEEWAY + timedelta(seconds=60)
"""How long after its end a session's key is needed in Redis: while any of its access tokens could still be accepted,
plus a minute between setting the key and the end of the transaction."""

MARKER_LIVES = timedelta(seconds=60)
"""The marker's time to live, which every process renews twice a second."""

VOUCHES_FOR = timedelta(seconds=1)
"""How long after it began a reading of the fence counts."""

SETTLES_IN = VOUCHES_FOR + timedelta(milliseconds=100)
"""How long after an epoch was first read no process goes by an earlier one any more."""

STEP = timedelta(seconds=30)
"""A clock that is off by more than this has stepped. Half of the reserve that keys and marker have."""

LONGEST_STEP = timedelta(days=1)
"""No revocation is lost by a step of a clock, back or ahead, of up to this."""

LOOK_BACK = REMEMBERED_FOR + LONGEST_STEP
"""How far back a rebuild looks, by the database's clock of that moment."""

KEY_LIVES = REMEMBERED_FOR + LONGEST_STEP + MARKER_LIVES
"""A key's time to live, by Redis's clock. No step of that clock takes a key that is still needed, however short the
step is: Redis drops the keys that it looks at meanwhile, and may not look at the marker, which then comes back with the
clock."""
