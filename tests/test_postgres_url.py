"""The URL of a Postgres and libpq's variables: which count, and which are refused because they would have no effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.postgres_url import PostgresURL
from app.storage.database import Database
from tests.conftest import settings_of


def addresses(rest: str) -> object:
    return PostgresURL.parse(f"postgresql://u:p@{rest}").addresses


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("h/db", [("h", 5432)]),
        ("h1,h2/db", [("h1", 5432), ("h2", 5432)]),
        ("h1:1,h2:2/db", [("h1", 1), ("h2", 2)]),
        ("h1,h2:2/db", [("h1", 5432), ("h2", 2)]),
        ("[::1]:1,h2/db", [("::1", 1), ("h2", 5432)]),
        ("/db?host=h1:1&host=h2:2", [("h1", 1), ("h2", 2)]),
        ("/db?host=h1&host=h2&port=7", [("h1", 7), ("h2", 7)]),
        ("/db?host=h1,h2&port=1,2", [("h1", 1), ("h2", 2)]),
        ("/db?host=h1,h2&port=1&port=2", [("h1", 1), ("h2", 2)]),
        ("/db?host=/run/pg&port=6", [("/run/pg", 6)]),
        ("%2Frun%2Fpg/db", [("/run/pg", 5432)]),
        ("/db?host=::1", [("::1", 5432)]),
        ("h/db?host=other", [("other", 5432)]),
        ("/db", [(None, 5432)]),
        ("/db?port=6", [(None, 6)]),
    ],
)
def test_hosts_and_ports_are_read_as_libpq_reads_them(rest: str, expected: object) -> None:
    assert list(addresses(rest)) == expected  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("rest", "saying"),
    [
        ("h1,/db", "must have a host"),
        ("h1,h2/db?port=1,2,3", "must have one port, or one for each host"),
        ("h1:1,h2/db?port=3", "must say each port once"),
        ("h:0/db", "port must be"),
        ("h:65536/db", "port must be"),
        ("/db?port=1,2", "more ports than hosts"),
        ("h/db?target_session_attrs=standby", "must be primary or read-write"),
        ("h/db?target_session_attrs=any", "must be primary or read-write"),
        ("h/db?sslmode=hunter2", "sslmode must be disable, "),
        ("h/db?sslmode=require&ssl=disable", "may be said once"),
        ("h/db?sslrootcert=/no/hunter2", "sslrootcert: there is no such file"),
        ("h/db?options=-c%20geqo%3Doff", "options may be -c search_path="),
        ("h/db?options=-c%20search_path%3Da%20-c%20geqo%3Doff", "options may be -c search_path="),
        ("h/db?options=-csearch_path%3D%27hunter2", "options may be -c search_path="),
        ("h/db?options=", "options may be -c search_path="),
        ("h/db?channel_binding=require", "its options may be"),
        ("h/db?service=hunter2", "its options may be"),
        ("h/db#hunter2", "is not a URL"),
        ("h/db\r", "is not a URL"),
    ],
)
def test_what_would_have_no_effect_is_refused_by_name_and_without_its_value(rest: str, saying: str) -> None:
    with pytest.raises(ValueError, match=saying) as caught:
        addresses(rest)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    ["-c search_path=a,b", "-csearch_path=a,b", "--search_path=a,b", "--search-path=a,b", "-c search_path=a,\\b"],
)
def test_the_search_path_is_written_as_psql_takes_it(options: str) -> None:
    url = PostgresURL.parse("postgresql://h/db")
    assert url.within({"PGUSER": "u", "PGOPTIONS": options}).search_path == "a,b"


def test_libpqs_variables_count_where_the_url_says_nothing() -> None:
    environ = {
        "PGUSER": "u",
        "PGHOST": "h1,h2",
        "PGPORT": "1,2",
        "PGTARGETSESSIONATTRS": "read-write",
        "PGOPTIONS": "-c search_path=auth",
    }
    url = PostgresURL.parse("postgresql:///db").within(environ)
    assert (list(url.addresses), url.attribute, url.search_path) == ([("h1", 1), ("h2", 2)], "read-write", "auth")
    own = "postgresql://h/db?target_session_attrs=primary&options=-csearch_path%3Dmine"
    url = PostgresURL.parse(own).within(environ)
    assert (list(url.addresses), url.attribute, url.search_path) == ([("h", 5432)], "primary", "mine")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PGSERVICE", "hunter2"),
        ("PGHOSTADDR", "192.0.2.1"),
        ("PGREQUIREAUTH", "scram-sha-256"),
        ("PGCHANNELBINDING", "require"),
        ("PGTARGETSESSIONATTRS", "standby"),
        ("PGOPTIONS", "-c hunter2=1"),
        ("PGSSLMODE", "hunter2"),
        ("PGSSLROOTCERT", "/no/hunter2"),
    ],
)
def test_a_variable_that_would_have_no_effect_stops_the_start_in_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"^{name}: ") as caught:
        Database(settings_of("postgresql://u@h/db", None))
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_line_to_the_operator_shows_no_password(tmp_path: Path) -> None:
    url = PostgresURL.parse("postgresql://u:hunter2@h1,[::1]:3/db?sslmode=require")
    assert f"{url} {url!r}" == " ".join(["postgresql://u@h1:5432,[::1]:3/db"] * 2)


@pytest.mark.parametrize("name", ["PGUSER", "PGDATABASE", "PGPORT", "PGHOST", "PGPASSWORD", "PGSSLMODE"])
@pytest.mark.parametrize("end", ["\r", "\n", "\u200b"])
def test_a_variable_with_a_character_that_nobody_sees_is_refused_by_name(name: str, end: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: has a blank at an end, or a character that can't be seen$"):
        PostgresURL.parse("postgresql://").within({name: f"a{end}"})


@pytest.mark.parametrize("url", ["postgresql://u@h/db%0d", "postgresql://u%0A@h/db", "postgresql://u:p%7F@h/db"])
def test_an_escaped_control_character_in_a_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^holds an escaped character that can't be seen$"):
        PostgresURL.parse(url)
