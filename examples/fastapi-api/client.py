"""The way of a client: sign in, call the service, refresh, call again, log out."""

import os
import sys
from getpass import getpass

import httpx2

keyturn = httpx2.Client(base_url=os.environ.get("KEYTURN", "http://127.0.0.1:8000"))
service = httpx2.Client(base_url=os.environ.get("SERVICE", "http://127.0.0.1:9000"))
email, password = sys.argv[1], getpass()

tokens = keyturn.post("/auth/login", json={"email": email, "password": password}).raise_for_status().json()
bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
print(service.get("/hello", headers=bearer).json())

tokens = keyturn.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]}).raise_for_status().json()
bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
print(service.get("/hello", headers=bearer).json())

keyturn.post("/auth/logout", headers=bearer)
print(service.get("/hello", headers=bearer).status_code)
