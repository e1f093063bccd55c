"""Limits on attempts: guesses are slowed down, and nobody is locked out."""
