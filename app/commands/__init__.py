"""The `keyturn` command: one file for each noun. `command` puts them together."""
