"""An example of each command that takes words, as its help ends with it."""

from __future__ import annotations

from collections.abc import Mapping

_SESSION = "019ad2b8-6c1e-7d5a-9f0e-3c2b1a09f8e7"

EXAMPLES: Mapping[str, str] = {
    example.partition(" -- ")[0].rpartition(" | ")[2]: example.replace(" -- ", " ")
    for example in (
        "keyturn serve -- --host 0.0.0.0 --workers 2",
        "keyturn db rights -- keyturn | psql -h db -U keyturn_owner keyturn",
        "keyturn doctor -- --json",
        "keyturn incident -- access-key",
        "keyturn gc -- --keep-days 90",
        "keyturn users create -- ada@example.com --role admin",
        "keyturn users list -- --email 'ada*' --status enabled",
        "keyturn users show -- ada@example.com",
        "keyturn users disable -- ada@example.com",
        "keyturn users enable -- ada@example.com",
        "keyturn users set-role -- ada@example.com admin",
        'echo \'{"team": "red"}\' | keyturn users set-claims -- ada@example.com --json-stdin',
        "keyturn users set-password -- ada@example.com",
        "keyturn users reset-password -- ada@example.com",
        "keyturn users verify-email -- ada@example.com",
        "keyturn users identities -- ada@example.com",
        f"keyturn users unlink -- ada@example.com {_SESSION}",
        "keyturn users erase -- ada@example.com --yes-erase",
        "keyturn sessions list -- --user ada@example.com --status live",
        f"keyturn sessions show -- {_SESSION}",
        "keyturn sessions end -- --user ada@example.com --preview",
        "keyturn policies show -- global",
        "keyturn policies set -- global idle_lifetime=86400 session_limit=5",
        "keyturn policies unset -- global session_limit",
        "keyturn keys generate -- access --algorithm ES256",
        "keyturn keys rotate -- access",
        "keyturn keys retire -- 3f9c0b7d5a1e8246",
        "keyturn keys replace -- --sign-everyone-out",
        "keyturn keys import -- access-key.txt",
        "keyturn keys export -- 3f9c0b7d5a1e8246 --yes-export-this-secret",
        "keyturn federation add -- acme --preset oidc --issuer https://login.example.com",
        "keyturn federation remove -- acme",
        "keyturn federation check -- acme",
        "keyturn federation sessions get -- acme ses_1",
        "keyturn federation sessions list -- acme usr_1 --status active",
        "keyturn federation sessions revoke -- acme ses_1",
        "keyturn federation sessions revoke-all -- acme usr_1",
        "keyturn federation revocations -- --given-up",
        "keyturn federation replay -- --all",
        "keyturn events list -- --user ada@example.com --since 2026-01-31T12:00:00Z",
        "keyturn why -- ada@example.com",
        "keyturn top -- --once",
    )
}
"""By the words of the command. ` -- ` stands before the first word that the command takes."""
