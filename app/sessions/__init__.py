"""Sessions: sign-in, refresh, retry, reuse and end."""
