"""Why: all that rows and events tell of one user or session, in sentences and in order."""
