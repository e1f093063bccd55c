"""Users, and how one proves to be one."""
