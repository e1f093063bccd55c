"""A session whose tokens lie in a file: one process at a time refreshes, and an outage of Keyturn loses nothing."""

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2

Record = dict[str, Any]


class SignedOutError(Exception):
    """There is no session: the user has to sign in."""


class RefusedError(Exception):
    """Keyturn takes the request for a wrong one, and nothing has changed."""


class AwayError(Exception):
    """Keyturn gives no verdict now. The tokens are kept, so the same call may be made again."""


class StoredSession:
    """The session in the file `path`, which its user alone may read."""

    def __init__(self, url: str, path: Path) -> None:
        self._url = url
        self._path = path

    def login(self, email: str, password: str) -> None:
        """Sign in. Raises SignedOutError or RefusedError with Keyturn's words where it refuses."""
        with self._locked():
            self._write(self._kept(self._post("/auth/login", {"email": email, "password": password})))

    def access_token(self, *, refused: str | None = None) -> str:
        """An access token for the next call. `refused` is one that a service has just answered with 401.

        Raises SignedOutError when the session is over, and AwayError where no good token is left and none is to be had.
        """
        record = self._read()
        if self._due(record, refused):
            with self._locked():
                record = self._read()  # another process may have refreshed
                # A late retry gets the answer of its own rotation, whose access token may be over: then once more.
                while self._due(record, refused):
                    try:
                        record = self._refreshed(record)
                    except AwayError:
                        if refused or time.time() >= record["expires_at"]:
                            raise
                        break  # the old access token is good for the last fifth of its life
        token: str = record["access_token"]
        return token

    def logout(self) -> None:
        """End the session here and at Keyturn. Raises AwayError where Keyturn can't: it is not ended then."""
        with self._locked():
            with suppress(SignedOutError):  # it was over already
                self._post("/auth/logout", {"refresh_token": self._read()["refresh_token"]})
            self._path.unlink(missing_ok=True)

    def _due(self, record: Record, refused: str | None) -> bool:
        return bool(time.time() >= record["refresh_at"] or record["access_token"] == refused)

    def _refreshed(self, record: Record) -> Record:
        if "retry_key" not in record:
            # Stored before the request: so a lost answer is asked for again, also by another process, and is no theft.
            record = record | {"retry_key": str(uuid.uuid4())}
            self._write(record)
        try:
            answer = self._post("/auth/refresh", {"refresh_token": record["refresh_token"]}, record["retry_key"])
        except SignedOutError:
            self._path.unlink()
            raise
        record = self._kept(answer)
        self._write(record)
        return record

    def _kept(self, answer: Record) -> Record:
        now, lifetime = time.time(), answer["expires_in"]
        kept = {name: answer[name] for name in ("access_token", "refresh_token")}
        return kept | {"refresh_at": now + lifetime * 4 / 5, "expires_at": now + lifetime}

    def _post(self, path: str, body: Record, retry_key: str | None = None) -> Record:
        fields = {"Idempotency-Key": retry_key} if retry_key else {}
        try:
            answer = httpx2.post(self._url + path, json=body, headers=fields, timeout=10)
        except httpx2.HTTPError as error:
            raise AwayError(type(error).__name__) from error
        if answer.status_code == 401:
            raise SignedOutError(answer.json().get("reason") or answer.json()["error_description"])
        if answer.status_code == 429 or answer.status_code >= 500:
            raise AwayError(f"it answered {answer.status_code}")
        if not answer.is_success:
            raise RefusedError(answer.json()["error_description"])
        record: Record = answer.json() if answer.content else {}
        return record

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time. The lock has a file of its own, because each write replaces the other one."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the end of the process gives it back
            yield

    def _read(self) -> Record:
        try:
            record: Record = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SignedOutError("nobody is signed in") from None
        return record

    def _write(self, record: Record) -> None:
        """Whole or not at all: a process that dies on the way leaves the old file."""
        new = self._path.with_suffix(".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
