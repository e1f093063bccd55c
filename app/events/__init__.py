"""Events: what happened, who did it, and on whom."""
