"""A web application and a one-page application that sign in with Keyturn, and a way to start them."""
