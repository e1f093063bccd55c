"""The file of issuers: what it may say, and the one line that stops a start where it says something else."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.federation.issuer import Issuer, IssuerSecrets
from app.federation.issuer_file import read
from tests.command_line import Command, findings, on_sqlite
from tests.command_line import keyturn as command  # noqa: F401  # a fixture
from tests.conftest import Opener, settings_of
from tests.test_issuers import secret_in
from tests.upstream.upstream import Upstream

HUNTER = "hunter2-is-no-good-secret"
ACME = '[issuers.acme]\npreset = "scalekit"\nissuer = "https://acme.scalekit.dev"\nclient_id = "skc_1"\n'


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "issuers.toml"
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)
    return file


def test_a_file_may_say_everything_that_the_table_may(tmp_path: Path) -> None:
    (tmp_path / "webhook").write_text("whsec_c2VjcmV0IG9mIHRoZSB3ZWJob29rcyAxMjM0NQ==\n")
    (tmp_path / "webhook").chmod(0o600)
    text = (
        f"{ACME}"
        'audiences = ["one", "two"]\n'
        "trust_email = true\n"
        "check_every = 30\n"
        f'client_secret = "{HUNTER}"\n'
        f'webhook_secret_file = "{tmp_path / "webhook"}"\n'
        "[issuers.acme.roles]\n"
        '"invoices:write" = "editor"\n'
        "[issuers.other]\n"
        'preset = "oidc"\nissuer = "https://login.example/tenant/"\nclient_id = "x"\n'
    )
    found = read(written(tmp_path, f"\ufeff{text}"))
    assert list(found) == ["acme", "other"]
    acme = found["acme"]
    assert acme.source == "file"
    assert acme.issuer == Issuer(
        preset="scalekit",
        issuer="https://acme.scalekit.dev",
        client_id="skc_1",
        audiences=("one", "two"),
        trust_email=True,
        check_every=30,
        roles={"invoices:write": "editor"},
    )
    assert secret_in(acme) == HUNTER
    assert secret_in(acme, "webhook_secret") == "whsec_c2VjcmV0IG9mIHRoZSB3ZWJob29rcyAxMjM0NQ=="
    assert found["other"].secrets == IssuerSecrets()
    assert read(written(tmp_path, "")) == {}


def test_the_stand_in_writes_such_a_file(tmp_path: Path, upstream: Upstream) -> None:
    text = upstream.toml("acme", roles={"admin": "editor"})
    assert read(written(tmp_path, text))["acme"].issuer == upstream.configured(roles={"admin": "editor"}).issuer


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("issuers = 1", "has something else than tables"),
        ("[issuer.acme]", "has something else than tables"),
        (f'client_secret = "{HUNTER}"', "has something else than tables"),
        ("[issuers]\nacme = 1", "acme is no table"),
        ("[issuers.Acme]", "a name must have"),
        (f'[issuers."{HUNTER}!"]', "a name must have"),
        ("[issuers.acme]", "acme: preset: is missing"),
        (f'{ACME}preset = "scalekit"\n', "not valid TOML (line 5)"),
        (f"{ACME}client_secret = {HUNTER}", "not valid TOML (line 5)"),
        (f'{ACME}client_secret = "{HUNTER}', "not valid TOML"),
        ("x = " + "[" * 100_000, "not valid TOML"),
        (ACME.replace("scalekit", HUNTER, 1), "acme: preset: must be"),
        (ACME.replace("https://", "http://"), "acme: issuer: must be an https URL"),
        (ACME.replace("https://", f"https://user:{HUNTER}@"), "acme: issuer: must be an https URL"),
        (ACME.replace("https://", "https://["), "acme: issuer: must be an https URL"),
        (ACME.replace("scalekit.dev", "scalekit.dev:99999"), "acme: issuer: must be an https URL"),
        (ACME.replace("scalekit.dev", "scalekit.dev?"), "acme: issuer: must be an https URL"),
        (ACME.replace("scalekit.dev", "scälekit.dev"), "acme: issuer: must have 1 to 255"),
        (f'{ACME}is_admin = "{HUNTER}"', "acme: is_admin: there is no such member"),
        (f'{ACME}"{HUNTER}" = 1', "acme: there is an unknown member"),
        (f'{ACME}check_every = "{HUNTER}"', "acme: check_every: "),
        (f'{ACME}algorithms = ["HS256"]', "acme: algorithms: must be"),
        (f"{ACME}algorithms = []", "acme: algorithms: "),
        (f'{ACME}default_role = "admin"', "acme: default_role: must not be admin"),
        (f"{ACME}link_by_email = true", "acme: link_by_email: needs trust_email"),
        (f'{ACME}[issuers.acme.roles]\nboss = "Admin!"', "acme: roles: "),
        (f'{ACME}[issuers.acme.roles]\nadmin = "admin"', "acme: roles: admin needs organizations"),
        (f'{ACME}[issuers.acme.claims]\norg = "sub"', "acme: claims: a name is reserved"),
        (f'{ACME}[issuers.acme.claims]\norg = "ROLE"', "acme: claims: a name is reserved"),
        (f"{ACME}client_secret = 1", "acme: client_secret: "),
        (f'{ACME}client_secret = ""', "acme: client_secret: "),
        (f'{ACME}webhook_secret = "{HUNTER}!"', "acme: webhook_secret: "),
        (f'{ACME}client_secret = "{HUNTER}"\nclient_secret_file = "x"', "acme: client_secret: is set, and"),
        (f"{ACME}client_secret_file = 1", "acme: client_secret_file: is not the path"),
        (f'{ACME}client_secret_file = "no-such-file"', "acme: client_secret_file: no-such-file can't be read"),
        (f"{ACME}{ACME.replace('acme]', 'b]')}", "acme and b have an issuer in common"),
        (f'{ACME}also_issuers = ["https://acme.scalekit.dev"]', "acme: also_issuers: repeats the issuer"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line_that_names_the_member_and_never_a_value(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read(written(tmp_path, text))
    line = str(refused.value)
    assert line.startswith("KEYTURN_FEDERATION_FILE: ")
    assert said in line
    assert "\n" not in line
    assert HUNTER not in line


def test_a_file_that_everyone_may_write_or_with_a_secret_that_everyone_may_read_is_refused(tmp_path: Path) -> None:
    with_secret = f'{ACME}client_secret = "{HUNTER}"\n'
    with pytest.raises(ConfigurationError, match="KEYTURN_FEDERATION_FILE: is open to everyone"):
        read(written(tmp_path, with_secret, 0o644))
    assert secret_in(read(written(tmp_path, with_secret, 0o640))["acme"]) == HUNTER
    assert "acme" in read(written(tmp_path, ACME, 0o644))
    with pytest.raises(ConfigurationError, match="KEYTURN_FEDERATION_FILE: is open to everyone"):
        read(written(tmp_path, ACME, 0o646))  # whoever writes it decides who signs in
    secret = tmp_path / "secret"
    secret.write_text(f"{HUNTER}\n")
    named = f'{ACME}client_secret_file = "{secret}"\n'
    secret.chmod(0o604)
    with pytest.raises(ConfigurationError, match="acme: client_secret_file: is open to everyone"):
        read(written(tmp_path, named, 0o644))
    secret.chmod(0o600)
    assert secret_in(read(written(tmp_path, named, 0o644))["acme"]) == HUNTER
    for content, said in (("", "must not be empty"), ("a\nb", "can't be seen")):
        secret.write_text(content)
        with pytest.raises(ConfigurationError, match=said):
            read(written(tmp_path, named))


def test_a_path_that_is_no_text_file_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing", tmp_path, binary):
        with pytest.raises(ConfigurationError, match=r"^KEYTURN_FEDERATION_FILE: "):
            read(path)


def test_the_setting_is_a_path_and_no_file_that_holds_the_value_of_another_setting(tmp_path: Path) -> None:
    file = written(tmp_path, ACME)
    assert settings_of("sqlite+aiosqlite:///x", None, federation_file=file).federation_file == file
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_a_start_has_the_issuers_of_its_file(open_keyturn: Opener, tmp_path: Path) -> None:
    async with open_keyturn(federation_file=written(tmp_path, ACME)) as keyturn:
        assert keyturn.issuers.of("https://acme.scalekit.dev") is keyturn.issuers.named("acme")


@on_sqlite
def test_a_malformed_file_stops_the_start_and_the_doctor_says_so(command: Command, tmp_path: Path) -> None:  # noqa: F811  # the fixture
    file = written(tmp_path, f'{ACME}client_secret = "{HUNTER}"\nopen = true\n')
    command.environment["KEYTURN_FEDERATION_FILE"] = str(file)
    said = command.refused(1, "serve")
    assert said.strip().endswith("KEYTURN_FEDERATION_FILE: acme: open: there is no such member")
    assert findings(command("doctor", "--json"))["set-up"].startswith("KEYTURN_FEDERATION_FILE: acme: open")
    written(tmp_path, ACME)
    assert command("doctor", "--json").json
