"""Clients and applications that show how to use Keyturn. Keyturn itself imports none of them."""
