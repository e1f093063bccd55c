"""Credentials and the keys that make them."""
