"""The greeting of a stand-in that a developer starts by hand: what to type next.

The ports are fixed, so that an issuer that was added once is there again after the next start. So are the keys: they
stand in a folder of the user's cache, as long as the certificate in it is good.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from .shared_secrets import CLIENT_SECRET, WEBHOOK_SECRET

PORT, CONTROL_PORT = 9443, 9444
CLIENT_ID = "skc_1"

_A_DAY = 86_400

_TEXT = """\
A stand-in of Scalekit on https://127.0.0.1:{port}. Ctrl-C ends it; it forgets its users and sessions then.

Add it to the service that `python3 dev.py serve` started, and look at it:

    printf '%s\\n' {client_secret} {webhook_secret} | python3 dev.py keyturn federation add acme \\
        --preset scalekit --issuer https://127.0.0.1:{port} --client-id {client_id} --set trust_email=true \\
        --set private_addresses=true --set ca_file={ca_file} --client-secret-stdin --webhook-secret-stdin
    python3 dev.py keyturn federation check acme

Sign a user in here, and exchange the token there (in one shell):

    ISSUER=http://127.0.0.1:{control_port} KEYTURN=http://127.0.0.1:8000
    LOGIN=$(curl -sS $ISSUER -d '{{"name": "sign_in", "arguments": {{"email": "ada@example.com"}}}}')
    of() {{ echo "$LOGIN" | grep -o "\\"$1\\": \\"[^\\"]*" | cut -d '"' -f 4; }}
    curl -sS -w '\\n' -H 'Content-Type: application/json' $KEYTURN/auth/exchange -d "{{\\"subject_token\\": \\"$(of access_token)\\"}}"

Let it tell Keyturn of logouts, and log the user out here:

    curl -sS -w '\\n' $ISSUER -d '{{"name": "send_to", "arguments": {{"back_channel": ["'$KEYTURN/federation/acme/logout'"], "webhooks": []}}}}'
    curl -sS -w '\\n' $ISSUER -d '{{"name": "end", "arguments": {{"session_id": "'$(of session_id)'", "how": "logout"}}}}'

Break it, and mend it (tests/upstream/control.py has more; tests/upstream/wire.py lists the kinds of faults):

    curl -sS -w '\\n' $ISSUER -d '{{"name": "fault", "arguments": {{"path": "/keys", "kind": "status"}}}}'
    curl -sS -w '\\n' $ISSUER -d '{{"name": "heal"}}'
"""


def folder() -> Path:
    """The folder of the keys. They are made anew when the certificate of the server is about to expire."""
    place = Path.home() / ".cache" / "keyturn-issuer"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    server = place / "server.pem"
    if server.exists() and time.time() - server.stat().st_mtime > _A_DAY:
        server.unlink()
    return place


def text(ca_file: Path) -> str:
    """The greeting."""
    return _TEXT.format(
        port=PORT,
        control_port=CONTROL_PORT,
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        webhook_secret=WEBHOOK_SECRET,
        ca_file=shlex.quote(str(ca_file)),
    )
