"""The pages about moving to Keyturn: their SQL brings the users over, and passwords move as far as the pages say."""

from __future__ import annotations

import asyncio
import re
from uuid import UUID

import httpx2
import pytest
from argon2 import PasswordHasher
from sqlalchemy import text

from app.keyturn import Keyturn
from app.main import create_app
from tests.conftest import PASSWORD, settings_of
from tests.service import ROOT

ADA, BOB = UUID("0d9f3e1c-6a0b-4c3e-9d55-0b7d3b1f2a11"), UUID("1d9f3e1c-6a0b-4c3e-9d55-0b7d3b1f2a12")
ARGON2 = PasswordHasher(time_cost=2, memory_cost=102_400, parallelism=8).hash(PASSWORD)  # Django's parameters
BCRYPT = "$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW"

OLD = {
    "from-home-made": (
        "CREATE TABLE old_users (id uuid, email text, argon2_hash text, created_at timestamptz DEFAULT now())",
        f"INSERT INTO old_users VALUES ('{ADA}', ' Ada@Example.com', '{ARGON2}'), ('{BOB}', 'bob@example.com', '{BCRYPT}')",
    ),
    "from-simplejwt": (
        (
            "CREATE TABLE auth_user (id serial, email text, password text, is_superuser bool, is_active bool DEFAULT true,"
            " date_joined timestamptz DEFAULT now())"
        ),
        (
            "INSERT INTO auth_user (email, password, is_superuser) VALUES"
            f" ('Ada@example.com', 'argon2{ARGON2}', true), ('bob@example.com', 'pbkdf2_sha256$1$a$b', false),"
            " ('', 'argon2$', false)"
        ),
    ),
    "from-supabase": (
        (
            "CREATE TABLE supabase_users (id uuid, email text, email_confirmed_at timestamptz, created_at timestamptz"
            " DEFAULT now(), deleted_at timestamptz, is_sso_user bool DEFAULT false, is_anonymous bool DEFAULT false)"
        ),
        (
            f"INSERT INTO supabase_users (id, email, email_confirmed_at) VALUES ('{ADA}', 'Ada@example.com', now()),"
            f" ('{BOB}', 'bob@example.com', NULL), (gen_random_uuid(), NULL, NULL)"
        ),
    ),
}


async def move(keyturn: Keyturn, page: str) -> None:
    """Runs the page's SQL on tables as the old service has them."""
    blocks = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    async with keyturn.db.begin() as tx:
        for statement in (*OLD[page], *(each for block in blocks for each in block.split(";"))):
            if statement.strip():
                await tx.execute(text(statement))


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
@pytest.mark.parametrize("page", OLD)
async def test_the_users_of_a_page_move_with_argon2_hashes_and_without_any_other(database_url: str, page: str) -> None:
    app = create_app(settings_of(database_url, None))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="https://auth.example.com") as client,
    ):
        await move(app.state.keyturn, page)

        async def rows() -> dict[str, tuple[UUID, str | None, str]]:
            async with app.state.keyturn.db.begin() as tx:
                found = await tx.execute(text("SELECT email, id, password_hash, role FROM users"))
                return {email: (user_id, hashed, role) for email, user_id, hashed, role in found}

        async def sign_in(email: str) -> httpx2.Response:
            return await client.post("/auth/login", json={"email": email, "password": PASSWORD})

        before = await rows()
        assert before.keys() == {"ada@example.com", "bob@example.com"}
        assert (await sign_in("bob@example.com")).status_code == 401
        signed_in = await sign_in("ADA@example.com")
        if page == "from-supabase":
            assert {hashed for _, hashed, _ in before.values()} == {None}
            assert signed_in.status_code == 401
            return
        assert signed_in.status_code == 200
        bearer = {"Authorization": f"Bearer {signed_in.json()['access_token']}"}
        claims = (await client.get("/auth/verify", headers=bearer)).json()
        user_id, hashed, role = before["ada@example.com"]
        assert (claims["sub"], claims["role"]) == (str(user_id), role)
        assert hashed == ARGON2
        if page == "from-home-made":
            assert user_id == ADA
        else:
            assert role == "admin"
        async with asyncio.timeout(10):  # hashed anew with today's parameters, after the answer
            while (await rows())["ada@example.com"][1] == ARGON2:
                await asyncio.sleep(0.02)
