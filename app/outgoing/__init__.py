"""Requests that Keyturn sends out: to configured places alone, and bounded. No room below knows whose they are."""
