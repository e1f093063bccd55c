"""HTTP as it comes in and goes out. Nothing here knows a session."""
