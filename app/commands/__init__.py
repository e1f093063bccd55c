"""The `keyturn` command, one file a noun. `command` puts them together."""
