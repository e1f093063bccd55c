"""The secrets of the stand-in. No log of the service may hold them."""

CLIENT_SECRET = "standin_client_secret_v8Jm2"
WEBHOOK_SECRET = "whsec_c3RhbmQtaW4gd2ViaG9vayBzZWNyZXQgMQ=="
