"""Storage: Postgres or SQLite, its tables, and how statements reach it."""
