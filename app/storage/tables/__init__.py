"""The tables, with their constraints and indexes: one file a table."""

from .cache_fence import CacheFence
from .columns import Base, Duration, Moment, microseconds, moment, uuid7
from .events import Event
from .identities import Identity
from .issuers import Issuer
from .keys import Key
from .policies import Policy
from .pulse import Pulse
from .sessions import Session
from .taken_tokens import TakenToken
from .upstream_sessions import UpstreamSession
from .users import User

__all__ = [
    "Base",
    "CacheFence",
    "Duration",
    "Event",
    "Identity",
    "Issuer",
    "Key",
    "Moment",
    "Policy",
    "Pulse",
    "Session",
    "TakenToken",
    "UpstreamSession",
    "User",
    "microseconds",
    "moment",
    "uuid7",
]
