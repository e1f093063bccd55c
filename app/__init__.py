"""Keyturn: a self-hosted token service."""
