"""The policies: how long sessions and their tokens live, and the bounds of a sign-in, changed while Keyturn runs."""

from .in_force import ChangedMeanwhileError, Policies
from .policy import Policy, jittered
from .stored import Stored

__all__ = ["ChangedMeanwhileError", "Policies", "Policy", "Stored", "jittered"]
