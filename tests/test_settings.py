"""The settings that are accepted, and the error for each other: one line that repeats no value."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.revocation import redis_server
from app.settings import Settings, read
from app.tokens.master_secret import master_secret
from tests.conftest import SECRET

DICE = random.Random(12)  # a fixed seed, because each process that runs tests must give them the same names
PRODUCTION = {
    "KEYTURN_DATABASE_URL": "postgresql://keyturn:hunter2@db.example/keyturn",
    "KEYTURN_REDIS_URL": "none",
    "KEYTURN_ISSUER": "https://auth.example.com",
    "KEYTURN_SECRET": SECRET,
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(environ: dict[str, str], *, naming: str, hiding: str = "", config: Path | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(environ, config=config)
    line = str(caught.value)
    assert naming in line
    assert "\n" not in line
    assert not hiding or hiding not in line
    # The traceback must not show the value either, so the validation error, which holds all values, is not its cause.
    assert not hiding or hiding not in "".join(traceback.format_exception(caught.value))
    return line


def test_without_any_setting_there_is_an_embedded_default() -> None:
    settings = read({})
    assert settings == Settings()
    assert not settings.production
    assert settings.sqlalchemy_url.startswith("sqlite+aiosqlite:///")


@pytest.mark.parametrize("name", ["KEYTURN_RETRY_WINDOWS", "KEYTURN_", "KEYTURN_SECRETS", "KEYTURN_PRODUCTION"])
def test_an_unknown_variable_is_refused_by_name_and_without_its_value(name: str) -> None:
    line = refused({name: "hunter2"}, naming=name, hiding="hunter2")
    assert "there is no such setting" in line


def test_a_variable_of_someone_else_is_not_ours_to_judge() -> None:
    assert read({"KEYTURNS": "x", "PATH": "/bin", "HOST": "elsewhere"}) == Settings()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ACCESS_TOKEN_LIFETIME", ["29", "3601", "-1", "15m", "1e3", "900.5", "٩٠٠", "", "9 00", "9" * 30, "9" * 5000]),
        ("REFRESH_TOKEN_LIFETIME", ["59", "31622401", "0"]),
        ("SESSION_LIFETIME", ["59", "316224001"]),
        ("RETRY_WINDOW", ["301", "-1", "x"]),
        ("VERIFY_WITHOUT_DATABASE", ["901", "-1"]),
        ("REGISTRATION", ["perhaps", "2", ""]),
        ("ARGON2_MEMORY", ["7", "1048577", "64M"]),
        ("ARGON2_PASSES", ["0", "65"]),
        ("ARGON2_LANES", ["0", "17"]),
        ("HASHING_SLOTS", ["0", "65"]),
        ("HASHING_QUEUE", ["-1", "10001"]),
        ("PORT", ["-1", "65536", "http"]),
        ("WORKERS", ["0", "65"]),
        ("HOST", [""]),
        ("ROOT_PATH", ["keyturn", "/keyturn//", "//", "/a?b", "/a b", "/..", "/a/./b"]),
        ("ROOT_PATH", ["/auth/verify", "/auth/verify/", "/auth/verify/keyturn"]),
        ("TRUSTED_PROXIES", ["10.0.0.0/33", "proxy.example", "10.0.0.1;10.0.0.2"]),
        ("ALLOWED_ORIGINS", ["*", "https://a.example/", "http://a.example", "https://a.example;https://b.example"]),
        ("HSTS", ["-1", "63072001", "1y"]),
        ("DATABASE_POOL", ["1", "201"]),
        ("LOG_LEVEL", ["loud", "INFO "]),
        ("SIGNING_ALGORITHM", ["none", "RS512", "PS256", "RS256-3072", "hs256"]),
        ("AUDIENCE", ["", "a" * 256]),
        ("CLIENT_ID", ["", "a b", "é", "x" * 65]),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, values: list[str]) -> None:
    for value in values:
        refused({f"KEYTURN_{name}": value}, naming=f"KEYTURN_{name}", hiding=value if len(value) > 9 else "")


@pytest.mark.parametrize(
    ("name", "value", "read_as"),
    [
        ("access_token_lifetime", "30", timedelta(seconds=30)),
        ("access_token_lifetime", "3600", timedelta(hours=1)),
        ("retry_window", "0", timedelta(0)),
        ("retry_window", "300", timedelta(minutes=5)),
        ("verify_without_database", "0", timedelta(0)),
        ("registration", "true", True),
        ("port", "0", 0),
        ("port", "65535", 65535),
        ("root_path", "/a/b", "/a/b"),
        ("root_path", "/auth/", "/auth"),
        ("root_path", "/", ""),
        ("root_path", "/auth/verifying", "/auth/verifying"),
        ("trusted_proxies", "10.0.0.0/8, ::1", "10.0.0.0/8, ::1"),
        ("allowed_origins", "", ""),
        ("hsts", "0", timedelta(0)),
        ("hsts", "63072000", timedelta(days=730)),
    ],
)
def test_the_ends_of_each_range_belong_to_it(name: str, value: str, read_as: object) -> None:
    more = {"KEYTURN_RETRY_WINDOW": "0"} if value == "30" else {}
    assert getattr(read({**more, f"KEYTURN_{name.upper()}": value}), name) == read_as


@pytest.mark.parametrize(
    ("settings", "naming"),
    [
        ({"RETRY_WINDOW": "60", "ACCESS_TOKEN_LIFETIME": "179"}, "RETRY_WINDOW must be at most a third"),
        ({"REFRESH_TOKEN_LIFETIME": "899"}, "REFRESH_TOKEN_LIFETIME must not be below KEYTURN_ACCESS_TOKEN_LIFETIME"),
        ({"SESSION_LIFETIME": "604799"}, "SESSION_LIFETIME must not be below KEYTURN_REFRESH_TOKEN_LIFETIME"),
        ({"ARGON2_MEMORY": "31", "ARGON2_LANES": "4"}, "ARGON2_MEMORY must be at least 8 KiB for each"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, str], naming: str) -> None:
    line = refused({f"KEYTURN_{name}": value for name, value in settings.items()}, naming=f"KEYTURN_{naming}")
    assert_full_names(line)


def assert_full_names(line: str) -> None:
    """Checks that a message names each setting by its variable, so that the operator can copy the name."""
    for name in sorted(re.findall(r"\w+", line)):
        plain = name.removeprefix("KEYTURN_").removesuffix("_FILE").lower()
        assert name.startswith("KEYTURN_") or not name.isupper() or plain not in Settings.model_fields, line


def test_a_bound_is_told_in_the_settings_own_unit() -> None:
    for name, value, words in (
        ("RETRY_WINDOW", "301", "must be 0 to 300 seconds"),
        ("ACCESS_TOKEN_LIFETIME", "1", "must be 2 to 3600 seconds"),
        ("WORKERS", "many", "must be 1 to 64"),
        ("HASHING_SLOTS", "65", "must be 1 to 64"),
        ("REGISTRATION", "perhaps", "must be true or false"),
        ("LOG_LEVEL", "loud", "must be debug or info or warning or error"),
        ("HOST", "", "must not be empty"),
    ):
        refused({f"KEYTURN_{name}": value}, naming=f"KEYTURN_{name}: {words}")


def test_all_that_is_missing_or_wrong_is_told_in_one_line() -> None:
    line = refused({"KEYTURN_DATABASE_URL": "postgresql://db/keyturn"}, naming="KEYTURN_SECRET")
    assert all(f"KEYTURN_{name}" in line for name in ("REDIS_URL", "ISSUER"))
    line = refused({"KEYTURN_PORT": "http", "KEYTURN_WORKERS": "0", "KEYTURN_SECRETS": "x"}, naming="KEYTURN_PORT")
    assert line.count("KEYTURN_") == 3


def test_faults_of_all_sources_of_values_and_of_rules_are_told_together(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('log_levels = "info"\nargon2_lanes = 9\n')
    environ = {
        "KEYTURN_CONFIG": str(config),
        "KEYTURN_DATABASE_URL": "postgresql://db/keyturn",
        "KEYTURN_REDIS_URL_FILE": str(tmp_path / "nothing"),
        "KEYTURN_SECRET_FILE": str(tmp_path / "nothing too"),
        "KEYTURN_HOST:": "x",
        "KEYTURN_WORKERS": "many",
        "KEYTURN_ARGON2_MEMORY": "8",
    }
    assert sorted(refused(environ, naming="KEYTURN_WORKERS").split("; ")) == [
        "KEYTURN_ARGON2_MEMORY must be at least 8 KiB for each of KEYTURN_ARGON2_LANES (RFC 9106 section 3.1)",
        "KEYTURN_HOST:: is no name of a setting",
        "KEYTURN_ISSUER must be set with a Postgres KEYTURN_DATABASE_URL: the public URL of this service",
        "KEYTURN_LOG_LEVELS: there is no such setting",
        "KEYTURN_REDIS_URL_FILE: can't be read (No such file or directory)",
        "KEYTURN_SECRET_FILE: can't be read (No such file or directory)",
        "KEYTURN_WORKERS: must be 1 to 64",
        "they look like KEYTURN_PORT",
    ]


def test_no_rule_is_told_that_only_a_wrong_value_breaks(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    production = {"KEYTURN_DATABASE_URL": "postgresql://db/keyturn", "KEYTURN_ISSUER": "https://auth.example.com"}
    said = refused({**production, "KEYTURN_REDIS_URL": "", "KEYTURN_SECRET_FILE": missing}, naming="KEYTURN")
    assert "KEYTURN_SECRET_FILE: can't be read" in said
    assert "KEYTURN_REDIS_URL: " in said
    assert "must be set" not in said
    # A source that can't be read may have had anything.
    assert "must be set" not in refused({**production, "KEYTURN_CONFIG": missing}, naming="--config")


def test_a_rule_between_settings_holds_at_its_edge() -> None:
    assert read({"KEYTURN_RETRY_WINDOW": "60", "KEYTURN_ACCESS_TOKEN_LIFETIME": "180"}).retry_window.seconds == 60


@pytest.mark.parametrize("missing", ["REDIS_URL", "ISSUER", "SECRET"])
def test_nothing_is_invented_beside_a_postgres(missing: str) -> None:
    name = f"KEYTURN_{missing}"
    line = refused({n: v for n, v in PRODUCTION.items() if n != name}, naming=f"{name} ", hiding="hunter2")
    assert "must be set" in line
    assert_full_names(line)
    assert read(PRODUCTION).production


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:hunter2@h/db",
        "sqlite:///hunter2.db",
        "postgresql+psycopg://u:hunter2@h/db",
        "hunter2",
        "postgresql://u:hunter2@h:port/db",
        "postgresql://u:hunter2#@h/db",
        "postgresql://u:hunter2@[zz/db",
        "postgresql://u:hunter2@h/db?target_session_attrs=hunter2",
        "postgresql://u:hunter2@/db?host=h&port=x",
        "postgresql:/hunter2",
        "postgresql://u:p@hunter2@h/db",
        "postgresql://u:12/hunter2@h/db",
    ],
)
def test_a_database_url_that_no_driver_can_use_is_refused(url: str) -> None:
    refused({**PRODUCTION, "KEYTURN_DATABASE_URL": url}, naming="KEYTURN_DATABASE_URL", hiding="hunter2")


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://u:p@h/db", "postgresql+asyncpg://u:p@h/db"),
        ("postgresql://u:p@h/db", "postgresql+asyncpg://u:p@h/db"),
        ("postgresql+asyncpg://u:p@h/db", "postgresql+asyncpg://u:p@h/db"),
        ("postgresql://u:p@h/db?sslmode=require", "postgresql+asyncpg://u:p@h/db?sslmode=require"),
        ("postgresql://u@/db?host=/run/pg&sslmode=disable", "postgresql+asyncpg://u@/db?host=/run/pg&sslmode=disable"),
    ],
)
def test_urls_as_platforms_hand_them_out_reach_the_one_driver(given: str, used: str) -> None:
    assert read({**PRODUCTION, "KEYTURN_DATABASE_URL": given}).sqlalchemy_url == used


@pytest.mark.parametrize(
    "url",
    ["memcached://hunter2", "hunter2", "redis://:hunter2\u2100@h", "redis://:hunter2@[abc]/0", "redis://h:hunter2"],
)
def test_a_redis_url_that_is_none_is_refused(url: str) -> None:
    refused({"KEYTURN_REDIS_URL": url}, naming="KEYTURN_REDIS_URL", hiding="hunter2")


@pytest.mark.parametrize(
    ("url", "saying"),
    [
        ("redis://:hunter2@h?foo=1", "its options may be db, ssl_ca_certs, "),
        ("redis://:hunter2@h?foo=", "its options may be"),
        ("rediss://:hunter2@h?socket_timeout=abc", "its options may be"),
        ("redis://:hunter2@h/0?socket_timeout=60", "its options may be"),
        ("redis://h?redis_connect_func=hunter2", "its options may be"),
        ("redis://:hunter2@h?retry=x", "its options may be"),
        ("redis://:hunter2@h?max_connections=1", "its options may be"),
        ("redis://h?password=hunter2", "its options may be"),
        ("redis://:hunter2@h?ssl_cert_reqs=none", "only with rediss://"),
        ("unix:///run/redis?ssl_keyfile=hunter2", "only with rediss://"),
        ("redis://h?db=hunter2", "db must be a whole number"),
        ("redis://h?db=", "db must be a whole number"),
        ("redis://h/hunter2", "db must be a whole number"),
        ("redis://h/0/1", "db must be a whole number"),
        ("redis://h/1?db=2", "db must be a whole number, and said once"),
        ("redis://h?db=1&db=2", "db must be a whole number, and said once"),
        ("rediss://h?ssl_ca_certs=", "ssl_ca_certs must be a file"),
        ("rediss://h?ssl_cert_reqs=hunter2", "ssl_cert_reqs must be required or none"),
        ("rediss://h?ssl_check_hostname=hunter2", "ssl_check_hostname must be true or false"),
    ],
)
def test_options_of_a_redis_url_that_are_unknown_bad_or_keyturns_own_are_refused(url: str, saying: str) -> None:
    assert saying in refused({"KEYTURN_REDIS_URL": url}, naming="KEYTURN_REDIS_URL", hiding="hunter2")


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("redis://h", {}),
        ("redis://h/", {}),
        ("redis://u:p@h:1234/3", {"db": 3}),
        ("redis://h?db=3", {"db": 3}),
        ("unix:///run/redis.sock?db=3", {"db": 3}),
        (
            "rediss://h/0?ssl_ca_certs=/a&ssl_certfile=/c&ssl_keyfile=/k&ssl_cert_reqs=required&ssl_check_hostname=false",
            {"ssl_ca_certs": "/a", "ssl_certfile": "/c", "ssl_keyfile": "/k", "ssl_check_hostname": False},
        ),
        ("rediss://h?ssl_cert_reqs=none", {"ssl_cert_reqs": "none"}),
    ],
)
async def test_options_of_a_redis_url_that_are_accepted_reach_the_driver(url: str, options: dict[str, object]) -> None:
    accepted = read({"KEYTURN_REDIS_URL": url}).redis
    assert accepted == url
    pool = redis_server.RedisServer(url)._pool
    assert pool is not None
    assert options.items() <= pool.connection_kwargs.items()
    pool.make_connection()  # a wrong URL fails only here, when the driver makes a connection


@pytest.mark.parametrize(
    "url",
    [
        "auth.example.com",
        "ftp://a.example",
        "https://",
        "https://a.example/?x=1",
        "https://a.example/?",
        "https://a.example/#x",
        "https://ada:hunter2@a.example",
        "https://hunter2 .example",
        "https://a.example:hunter2",
        "https://[hunter2]/",
    ],
)
def test_an_issuer_is_a_url_without_user_query_and_fragment(url: str) -> None:
    refused({"KEYTURN_ISSUER": url}, naming="KEYTURN_ISSUER", hiding="hunter2")


def test_a_value_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("postgresql://u:p@h/db\n")
    environ = {**PRODUCTION, "KEYTURN_DATABASE_URL_FILE": str(file)}
    del environ["KEYTURN_DATABASE_URL"]
    assert read(environ).sqlalchemy_url == "postgresql+asyncpg://u:p@h/db"


def _missing(file: Path) -> None:
    assert not file.exists()


def _folder(file: Path) -> None:
    file.mkdir()


def _binary(file: Path) -> None:
    file.write_bytes(b"hunter2\xff")


def _open_to_everyone(file: Path) -> None:
    file.write_text(SECRET)
    file.chmod(0o604)


def _empty(file: Path) -> None:
    file.write_text("\n")
    file.chmod(0o600)


@pytest.mark.parametrize("made", [_missing, _folder, _binary, _open_to_everyone])
def test_a_secret_file_that_is_no_good_is_refused(tmp_path: Path, made: Callable[[Path], None]) -> None:
    file = tmp_path / "master"
    made(file)
    if file.is_file() and made is not _open_to_everyone:
        file.chmod(0o600)
    refused({"KEYTURN_SECRET_FILE": str(file)}, naming="KEYTURN_SECRET_FILE: ", hiding="hunter2")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "master"
    file.write_text(SECRET)
    file.chmod(0)
    refused({"KEYTURN_SECRET_FILE": str(file)}, naming="KEYTURN_SECRET_FILE: can't be read", hiding=SECRET)


def test_a_secret_file_for_its_owner_alone_is_read(tmp_path: Path) -> None:
    file = tmp_path / "master"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    secret = read({"KEYTURN_SECRET_FILE": str(file)}).secret
    assert secret is not None
    assert secret.get_secret_value() == SECRET


@pytest.mark.parametrize("basis", [{}, PRODUCTION])
@pytest.mark.parametrize(
    "name", ["SECRET", "DATABASE_URL", "REDIS_URL", "ISSUER", "AUDIENCE", "DATA_DIR", "HOST", "PORT"]
)
def test_an_empty_value_is_refused_and_is_not_the_same_as_none(
    tmp_path: Path, name: str, basis: dict[str, str]
) -> None:
    file = tmp_path / "master"
    _empty(file)
    for empty in ("", " ", "\r", "\n"):
        refused({**basis, f"KEYTURN_{name}": empty}, naming=f"KEYTURN_{name}: must not be empty", hiding="hunter2")
    file_name = f"KEYTURN_{name}_FILE"
    environ = {n: value for n, value in basis.items() if n != f"KEYTURN_{name}"}
    refused({**environ, file_name: str(file)}, naming=f"{file_name}: its content must not be empty")
    refused({**environ, file_name: ""}, naming=f"{file_name}: must not be empty")
    (tmp_path / ".env").write_text(f"KEYTURN_{name}=\n")
    refused(environ, naming=f"KEYTURN_{name}: must not be empty")
    (tmp_path / ".env").write_text(f"KEYTURN_{name}\n")  # not even a =
    refused(environ, naming=f"KEYTURN_{name}: ")
    config = tmp_path / "keyturn.toml"
    config.write_text(f'{name.lower()} = ""\n')
    (tmp_path / ".env").unlink()
    refused(environ, naming=f"KEYTURN_{name}: must not be empty", config=config)


def test_empty_is_a_value_where_it_is_the_default() -> None:
    settings = read({"KEYTURN_ROOT_PATH": "", "KEYTURN_TRUSTED_PROXIES": " "})
    assert (settings.root_path, settings.trusted_proxies) == ("", "")
    refused({"KEYTURN_CONFIG": ""}, naming="KEYTURN_CONFIG: must not be empty")


AROUND = [" ", "\t", "\r", "\n", "\r\n", "\v\f"]
HIDDEN = ["\0", "\x1b", "\x7f", "\x85", "\xa0", "\u200b", "\u2028", "\u3000", "\ufeff", "\udcff"]
VALUES = {
    "DATABASE_URL": "postgresql://u:p@h/db",
    "REDIS_URL": "redis://h:1234/3",
    "SECRET": SECRET,
    "ISSUER": "https://auth.example.com",
    "AUDIENCE": "aud",
    "DATA_DIR": "data",
    "HOST": "127.0.0.1",
    "PORT": "9000",
    "LOG_LEVEL": "error",
    "REGISTRATION": "true",
    "RETRY_WINDOW": "30",
    "TRUSTED_PROXIES": "10.0.0.0/8",
    "CLIENT_ID": "app",
    "ROOT_PATH": "/keyturn",
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_loses_the_blanks_around_it_whatever_its_source(tmp_path: Path, name: str) -> None:
    basis = {n: v for n, v in PRODUCTION.items() if n != f"KEYTURN_{name}"}
    expected = getattr(read({**basis, f"KEYTURN_{name}": VALUES[name]}), name.lower())
    file, config = tmp_path / "file", tmp_path / "keyturn.toml"
    for blank in AROUND:
        for value in (VALUES[name] + blank, blank + VALUES[name], blank + VALUES[name] + blank):
            assert getattr(read({**basis, f"KEYTURN_{name}": value}), name.lower()) == expected
            file.write_bytes(value.encode())
            file.chmod(0o600)
            for path in (str(file), f"{file}{blank}"):
                assert getattr(read({**basis, f"KEYTURN_{name}_FILE": path}), name.lower()) == expected
            config.write_text(f"{name.lower()} = {json.dumps(value)}\n")
            assert getattr(read({**basis, "KEYTURN_CONFIG": f"{config}{blank}"}), name.lower()) == expected
    # Accept files as editors write them: a byte order mark, line ends of Windows, quotes, `export`.
    file.write_bytes(b"\xef\xbb\xbf" + VALUES[name].encode() + b"\r\n")
    assert getattr(read({**basis, f"KEYTURN_{name}_FILE": str(file)}), name.lower()) == expected
    config.write_bytes(b"\xef\xbb\xbf" + f"{name.lower()} = {json.dumps(VALUES[name])}\r\n".encode())
    assert getattr(read(basis, config=config), name.lower()) == expected
    for line in ("{}={}", "export {}={}", '{} = "{}"', "{}='{} '", '{}="{}\\r"', "\n# a note\n{}={} # another"):
        written = line.format(f"KEYTURN_{name}", VALUES[name])
        (tmp_path / ".env").write_bytes(b"\xef\xbb\xbf" + written.replace("\n", "\r\n").encode() + b"\r\n")
        assert getattr(read(basis), name.lower()) == expected, line


@pytest.mark.parametrize("name", VALUES)
def test_a_character_that_nobody_sees_is_refused_by_name_whatever_the_source(tmp_path: Path, name: str) -> None:
    basis = {n: v for n, v in PRODUCTION.items() if n != f"KEYTURN_{name}"}
    file, config = tmp_path / "file", tmp_path / "keyturn.toml"
    file.touch(0o600)
    for sign in (*HIDDEN, "\r", "\n", "\t"):
        values = [VALUES[name][:1] + sign + VALUES[name][1:]]
        if sign in HIDDEN:
            values += [VALUES[name] + sign, sign + VALUES[name]]
        for value in values:
            line = refused({**basis, f"KEYTURN_{name}": value}, naming=f"KEYTURN_{name}: holds a character")
            assert VALUES[name] not in line
            assert line.isprintable()
            if sign == "\udcff":
                continue
            file.write_bytes(value.encode())
            if not value.startswith("\ufeff"):
                refused({**basis, f"KEYTURN_{name}_FILE": str(file)}, naming=f"KEYTURN_{name}_FILE: its content holds")
            refused({**basis, f"KEYTURN_{name}_FILE": value}, naming=f"KEYTURN_{name}_FILE: holds a character")
            config.write_text(f"{name.lower()} = {json.dumps(value)}\n")
            refused(basis, naming=f"KEYTURN_{name}: holds a character", config=config)


@pytest.mark.parametrize(
    "name", ["keyturn_port", "Keyturn_Port", "KEYTURN_port", "KEYTURN-PORT", "keyturn.port", "\u200bKEYTURN_PORT"]
)
def test_a_name_that_was_meant_for_us_stops_the_start(tmp_path: Path, name: str) -> None:
    assert refused({name: "hunter2"}, naming="is no name of a setting; they look like KEYTURN_PORT").isprintable()
    (tmp_path / ".env").write_text(f"export {name}=hunter2\n", encoding="utf-8")
    refused({}, naming="is no name of a setting; they look like KEYTURN_PORT", hiding="hunter2")


@pytest.mark.parametrize(
    ("content", "naming"),
    [
        (b"OTHER=1\nKEYTURN_PORT: 8000\n", ".env: line 2 is not NAME=VALUE"),
        (b'KEYTURN_CLIENT_ID="hunter2\n', ".env: line 1 is not NAME=VALUE"),
        (b"KEYTURN_PORT 8000\n", ".env: line 1 is not NAME=VALUE"),
        ("KEYTURN_PORT=8000\n".encode("utf-16"), ".env: can't be read as UTF-8 text"),
        ("KEYTURN_PORT=8000\n".encode("utf-16-le"), ".env: can't be read as UTF-8 text"),
    ],
)
def test_a_line_of_a_dotenv_that_can_not_be_read_is_not_passed_over(
    tmp_path: Path, content: bytes, naming: str
) -> None:
    (tmp_path / ".env").write_bytes(content)
    refused({}, naming=naming, hiding="hunter2")


def test_what_a_dotenv_says_to_others_is_not_ours_to_judge(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MY_KEYTURN_PORT=x\nKEYTURNS=x\nno line of ours\nOTHER: x\nKEYTURN_PORT=9000\n")
    assert read({}).port == 9000


@pytest.mark.parametrize(
    ("line", "naming"),
    [
        ("port = true", "KEYTURN_PORT: must be 0 to 65535"),
        ("workers = false", "KEYTURN_WORKERS: must be"),
        ("port = 1.5", "KEYTURN_PORT: must be"),
        ("port = 1979-05-27", "KEYTURN_PORT: must be"),
        ("retry_window = 60.0", "KEYTURN_RETRY_WINDOW: "),
        ("secret = 5", "KEYTURN_SECRET: "),
        ('trusted_proxies = ["10.0.0.0/8"]', "KEYTURN_TRUSTED_PROXIES: "),
        ("data_dir = 5", "KEYTURN_DATA_DIR: "),
        ("secret_file = 5", "KEYTURN_SECRET_FILE: "),
        ("PORT = 1", "--config: write port and not PORT"),
        ("KEYTURN_PORT = 1", "--config: write port and not KEYTURN_PORT"),
        ('KEYTURN_SECRET_FILE = "x"', "--config: write secret_file and not"),
        ("[keyturn]\nport = 1", "there is no such setting"),
    ],
)
def test_a_toml_value_has_the_settings_type_and_its_name(tmp_path: Path, line: str, naming: str) -> None:
    config = tmp_path / "keyturn.toml"
    config.write_text(line)
    refused({}, naming=naming, config=config)


@pytest.mark.parametrize("folder", ["~", "~/data", "~ada/data", "a?b"])
def test_a_data_dir_that_would_be_another_folder_is_refused(folder: str) -> None:
    refused({"KEYTURN_DATA_DIR": folder}, naming="KEYTURN_DATA_DIR: ")


def links(name: str, port: int = 8000, protocol: str = "tcp", address: str = "10.0.0.1") -> dict[str, str]:
    """The environment variables that Kubernetes gives every container for one Service."""
    host = f"[{address}]" if ":" in address else address
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP": str(port),
        f"{name}_PORT": f"{protocol}://{host}:{port}",
        f"{name}_PORT_{port}_{protocol.upper()}": f"{protocol}://{host}:{port}",
        f"{name}_PORT_{port}_{protocol.upper()}_PROTO": protocol,
        f"{name}_PORT_{port}_{protocol.upper()}_PORT": str(port),
        f"{name}_PORT_{port}_{protocol.upper()}_ADDR": address,
    }


SERVICES = {
    "keyturn": links("KEYTURN"),
    "keyturn-redis": links("KEYTURN_REDIS", 6379),
    "keyturn-db on IPv6": links("KEYTURN_DB", 5432, address="fd00::1"),
    "keyturn-port": links("KEYTURN_PORT", 53, "udp"),
    "keyturn-secret-file": links("KEYTURN_SECRET_FILE", 9999, "sctp"),
}


@pytest.mark.parametrize("service", SERVICES)
def test_service_links_of_kubernetes_are_ignored_in_one_line(service: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(SERVICES[service]) == Settings()
    line = capsys.readouterr().err
    assert line.startswith("keyturn: ignored, as Kubernetes makes them for a Service: KEYTURN_")
    assert line.count("\n") == 1
    assert all(name in line for name in SERVICES[service])
    for name, value in SERVICES[service].items():  # each variable alone is ignored too
        assert read({name: value, "KEYTURN_WORKERS": "2"}).workers == 2


def test_service_links_are_told_once_by_all_processes_of_a_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (SERVICES["keyturn"] | {"KEYTURN_WORKERS": "2"}).items():
        monkeypatch.setenv(name, value)
    assert [read().workers, read().workers] == [2, 2]
    assert capsys.readouterr().err.count("ignored") == 1
    assert [name for name in os.environ if name.startswith("KEYTURN_")] == ["KEYTURN_WORKERS"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KEYTURN_REDIS_PORT", "6379"),
        ("KEYTURN_HTTP_PORT", "8000"),
        ("KEYTURN_PORT", "tcp:8000"),
        ("KEYTURN_PORTS", "tcp://10.0.0.1:8000"),
        ("KEYTURN_DATABASE_HOST", "10.0.0.1"),
        ("KEYTURN_SERVICE_HOSTS", "10.0.0.1"),
        ("KEYTURN_ISSUER_PORT_8000", "x"),
    ],
)
def test_a_misspelt_setting_is_no_service_link(name: str, value: str) -> None:
    refused({name: value}, naming=name)


def test_the_default_issuer_does_not_follow_host_and_port() -> None:
    default = read({}).iss
    for host, port in (("0.0.0.0", "9000"), ("::", "1"), ("::1", "8000"), ("fe80::1%eth0", "0")):
        settings = read({"KEYTURN_HOST": host, "KEYTURN_PORT": port})
        assert (settings.iss, settings.aud) == (default, default)
    assert default == "http://127.0.0.1:8000"


def test_a_value_and_its_file_at_once_are_refused(tmp_path: Path) -> None:
    environ = {"KEYTURN_SECRET": SECRET, "KEYTURN_SECRET_FILE": str(tmp_path / "x")}
    assert "use one of them" in refused(environ, naming="KEYTURN_SECRET_FILE: KEYTURN_SECRET is set too", hiding=SECRET)


def test_a_setting_comes_from_the_first_source_that_names_it(tmp_path: Path) -> None:
    config = tmp_path / "keyturn.toml"
    config.write_text('port = 1001\nhost = "10.0.0.1"\nworkers = 3\nlog_level = "error"\n')
    (tmp_path / ".env").write_text("KEYTURN_PORT=1002\nKEYTURN_HOST=10.0.0.2\nKEYTURN_WORKERS=4\nOTHER=1\n")
    environ = {"KEYTURN_CONFIG": str(config), "KEYTURN_PORT": "1003", "KEYTURN_HOST": "10.0.0.3"}
    settings = read(environ, port=1004)
    assert (settings.port, settings.host, settings.workers, settings.log_level) == (1004, "10.0.0.3", 4, "error")
    assert settings.access_token_lifetime == timedelta(seconds=900)
    # A `.env` may also name the configuration file.
    (tmp_path / ".env").write_text(f"KEYTURN_CONFIG={config}\n")
    assert read({}).port == 1001


def test_what_stands_in_a_dotenv_is_taken_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("KEYTURN_DATABASE_URL='postgresql://u:${HOME}@h/db'\n")
    (tmp_path / ".env").chmod(0o600)
    environ = {name: value for name, value in PRODUCTION.items() if name != "KEYTURN_DATABASE_URL"}
    assert read(environ).sqlalchemy_url == "postgresql+asyncpg://u:${HOME}@h/db"


@pytest.mark.parametrize(
    ("content", "naming"),
    [
        (b"KEYTURN_RETRY_WINDOWS=hunter2\n", "KEYTURN_RETRY_WINDOWS: there is no such setting"),
        (b"KEYTURN_PORT=hunter2\n", "KEYTURN_PORT: "),
        (b"KEYTURN_PORT\n", "KEYTURN_PORT: "),
        (b"KEYTURN_SECRET_FILE\n", "KEYTURN_SECRET_FILE: "),
        (b"KEYTURN_CLIENT_ID=hunter2\xff\n", ".env: "),
    ],
)
def test_a_dotenv_is_held_to_the_same_rules(tmp_path: Path, content: bytes, naming: str) -> None:
    (tmp_path / ".env").write_bytes(content)
    refused({}, naming=naming, hiding="hunter2")


@pytest.mark.parametrize(
    ("content", "naming"),
    [
        (b"retry_windows = 'hunter2'", "KEYTURN_RETRY_WINDOWS: there is no such setting"),
        (b"port = 'hunter2'", "KEYTURN_PORT: "),
        (b"registration = 'hunter2'", "KEYTURN_REGISTRATION: "),
        (b"retry_window = 1.5", "KEYTURN_RETRY_WINDOW: "),
        (b"retry_window = true", "KEYTURN_RETRY_WINDOW: "),
        (b"retry_window = 9223372036854775807", "KEYTURN_RETRY_WINDOW: "),
        (b"secret = 20261231", "KEYTURN_SECRET: "),
        (b"secret_file = 5", "KEYTURN_SECRET_FILE: "),
        (b'secret_file = "hunter2\\u0000"', "KEYTURN_SECRET_FILE: "),
        (b"[keyturn]\nport = 1", "KEYTURN_KEYTURN: there is no such setting"),
        (b"port = hunter2", "keyturn.toml is not valid TOML"),
        (b"host = '\xff'", "keyturn.toml is not valid TOML"),
    ],
)
def test_a_toml_file_is_held_to_the_same_rules(tmp_path: Path, content: bytes, naming: str) -> None:
    config = tmp_path / "keyturn.toml"
    config.write_bytes(content)
    refused({}, naming=naming, hiding="hunter2", config=config)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'"x\\u001b[2J" = 1', "KEYTURN_X\\x1b[2J: there is no such setting"),
        (b'"x\\u202e_file" = "/none"', "KEYTURN_X\\u202e_FILE: can't be read"),
        (b"x" * 5000 + b" = 1", f"KEYTURN_{'X' * 72}…: there is no such setting"),
    ],
)
def test_a_name_in_a_toml_file_is_escaped_and_bounded(tmp_path: Path, content: bytes, said: str) -> None:
    config = tmp_path / "keyturn.toml"
    config.write_bytes(content)
    assert refused({}, naming=said, config=config).isprintable()


def test_a_config_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused({"KEYTURN_CONFIG": str(tmp_path / "none.toml")}, naming="none.toml can't be read (No such file")


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "hunter2",
        "changeme",
        SECRET[:40],
        DICE.randbytes(31).hex(),
        b64(DICE.randbytes(31)),
        "not base64 at all, and long enough to hold a lot of bits!",
        "\udcff" * 50,
        # repetitive
        "a" * 64,
        "deadbeef" * 8,
        "0123456789abcdef" * 4,
        b64(bytes(32)),
        b64(b"\xff" * 64),
        b64(DICE.randbytes(8) * 8),
        # counted
        bytes(range(32)).hex(),
        bytes(range(1, 65)).hex(),
        bytes(range(255, 215, -1)).hex(),
        b64(bytes(i * 7 % 256 for i in range(40))),
        # sample and default
        "changeme" + SECRET,
        "Your-Secret-" + SECRET[:-1],
        "KEYTURN" + SECRET[:-1],
        SECRET[:-1] + "Insecure",
        # passphrases, encoded or made of base64's letters
        b64(b"correct horse battery staple and four more words"),
        b64(b"correct horse battery staple and four more words\n"),
        b"correct horse battery staple and four more words".hex(),
        b64("fünf große Bären aßen äußerst süße Möhren in Köln".encode()),
        "correcthorsebatterystaplecorrecthorsebatterystaple",
        "thequickbrownfoxjumpsoverthelazydogandthenrunsawayquickly",
        "THEQUICKBROWNFOXJUMPSOVERTHELAZYDOGANDTHENRUNSAWAYQUICKLY",
        "Correct-Horse-Battery-Staple-Correct-Horse-9",
    ],
)
def test_a_weak_master_secret_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        master_secret(secret)
    line = str(caught.value)
    assert line.startswith("KEYTURN_SECRET: ")
    assert "openssl rand -base64 32" in line
    assert not secret or secret not in line
    assert "\n" not in line


def test_random_master_secrets_are_accepted_in_every_spelling() -> None:
    for size in (32, 33, 48, 64, 256):
        for _ in range(40):
            raw = os.urandom(size)
            spellings = {
                raw.hex(),
                raw.hex().upper(),
                b64(raw),
                b64(raw).rstrip("="),
                base64.urlsafe_b64encode(raw).decode(),
                f"{b64(raw)}\n",
            }
            assert len({master_secret(spelling) for spelling in spellings}) == 1


def test_a_master_secret_becomes_one_size_and_not_another_ones() -> None:
    first, second = os.urandom(32), os.urandom(48)
    assert len(master_secret(b64(first))) == len(master_secret(b64(second))) == 32
    assert master_secret(b64(first)) != master_secret(b64(second)) != first


def test_no_repr_shows_a_secret() -> None:
    settings = read({**PRODUCTION, "KEYTURN_REDIS_URL": "redis://:hunter2@h"})
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter2" not in text
        assert SECRET not in text
