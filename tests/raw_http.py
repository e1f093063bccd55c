"""HTTP/1.1 as bytes: requests as a test writes them, and all answers that came back on one connection."""

import json
import re
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Exchange:
    """All bytes and answers that came back on one connection, and whether the server closed it."""

    raw: bytes
    closed: bool
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self):
        rest = self.raw
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            pairs = [line.split(": ", 1) for line in lines]
            headers = {name.lower(): value for name, value in pairs}
            assert len(headers) == len(pairs), f"a header field stands twice: {pairs}"
            length = int(headers.get("content-length", len(rest)))
            self.answers.append(Answer(int(first.split()[1]), headers, rest[:length]))
            rest = rest[length:]

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]


def request(method: str, target: str, *fields: str, body: bytes = b"", host: str = "Host: keyturn\r\n") -> bytes:
    length = [f"Content-Length: {len(body)}"] if body else []
    head = "".join(f"{line}\r\n" for line in (*fields, *length))
    return f"{method} {target} HTTP/1.1\r\n{host}{head}\r\n".encode("latin-1") + body


def chunked(*chunks: bytes, path: str = "/", end: bytes = b"0\r\n\r\n") -> bytes:
    head = request("POST", path, "Content-Type: application/json", "Transfer-Encoding: chunked")
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def assert_refused(answer: Answer, status: int, error: str = "invalid_request") -> None:
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.json["error"] == error
    assert answer.json["error_description"]
    assert answer.json.keys() <= {"error", "error_description", "reason"}


GET = request("GET", "/")


CHUNKED = "Transfer-Encoding: chunked"
UPGRADE = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
)
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: keyturn\r\n\r\n"
