"""The tables, with their constraints and indexes: one file a table."""

from .cache_fence import CacheFence
from .columns import Base, Duration, Moment, microseconds, moment, uuid7
from .events import Event
from .keys import Key
from .policies import Policy
from .pulse import Pulse
from .sessions import Session
from .users import User

__all__ = [
    "Base",
    "CacheFence",
    "Duration",
    "Event",
    "Key",
    "Moment",
    "Policy",
    "Pulse",
    "Session",
    "User",
    "microseconds",
    "moment",
    "uuid7",
]
