"""Sessions: the state machine of sign-in, refresh, retry, reuse and end."""
