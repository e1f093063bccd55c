"""The tables, with their constraints and indexes: one file a table."""

from .cache_fence import CacheFence
from .columns import Base, Moment, microseconds, moment, uuid7
from .keys import Key
from .sessions import Session
from .users import User

__all__ = ["Base", "CacheFence", "Key", "Moment", "Session", "User", "microseconds", "moment", "uuid7"]
