"""How long keys, marker and readings count: the durations that the proof in docs/revocation.md compares."""

from __future__ import annotations

from datetime import timedelta

from ..settings import LEEWAY
from ..settings_sessions import LONGEST_ACCESS_TOKEN

REMEMBERED_FOR = LONGEST_ACCESS_TOKEN + LEEWAY + timedelta(seconds=60)
"""How long Redis needs a session's key after the session's end: while a verifier could accept one of its access tokens,
plus a minute between the setting of the key and the end of the transaction."""

MARKER_LIVES = timedelta(seconds=60)
"""The marker's time to live, which every process renews twice a second."""

VOUCHES_FOR = timedelta(seconds=1)
"""How long a reading of the fence counts, from the moment when it began."""

KNOWN_TO_ALL_IN = VOUCHES_FOR + timedelta(milliseconds=100)
"""How long after one process first read an epoch another process may still rely on an earlier epoch."""

STEP = timedelta(seconds=30)
"""If a clock is off by more than this, it has stepped. Keys and marker live longer than needed by twice this."""

LONGEST_STEP = timedelta(days=1)
"""If a clock steps by up to this, back or ahead, no revocation is lost."""

LOOK_BACK = REMEMBERED_FOR + LONGEST_STEP
"""How far back a rebuild looks, by the database's clock of that moment."""

KEY_LIVES = REMEMBERED_FOR + LONGEST_STEP + MARKER_LIVES
"""A key's time to live, by Redis's clock.

No step of that clock may drop a key that is still needed, not even a short one. For while the clock is ahead, Redis
drops the expired keys that it looks at. If it does not look at the marker, the marker is valid again when the clock
goes back.
"""
