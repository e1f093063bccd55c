"""Revocation: how the end of a session reaches every verifier."""
