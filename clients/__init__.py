"""Unmodified generators make clients from the contract, and each client is tried against a running service."""
