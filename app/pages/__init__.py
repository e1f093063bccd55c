"""The start page and the reference of the API, for people. They have no script and load nothing."""
