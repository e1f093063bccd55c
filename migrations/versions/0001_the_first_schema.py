"""The first schema: users, sessions, keys, events, policies, issuers, the fence and the pulse.

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

moment = sa.TIMESTAMP(timezone=True).with_variant(sa.BigInteger(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "cache_fence",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.String(length=32), nullable=False),
        sa.Column("server", sa.String(length=96), nullable=True),
        sa.Column("changed_at", moment, nullable=False),
        sa.Column("vouches_from", moment, nullable=False),
        sa.Column("incarnation", sa.String(length=64), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_cache_fence_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cache_fence")),
    )
    op.create_table(
        "keys",
        sa.Column("kid", sa.String(length=64), nullable=False),
        sa.Column("use", sa.String(length=16), nullable=False),
        sa.Column("algorithm", sa.String(length=16), nullable=False),
        sa.Column("number", sa.SmallInteger(), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("signs_from", moment, nullable=False),
        sa.Column("retired_at", moment, nullable=True),
        sa.Column("retired_for", sa.String(length=32), nullable=True),
        sa.CheckConstraint("(use = 'refresh') = (number IS NOT NULL)", name=op.f("ck_keys_refresh_keys_are_numbered")),
        sa.CheckConstraint("use IN ('access', 'refresh', 'cookie')", name=op.f("ck_keys_use_is_known")),
        sa.CheckConstraint("number BETWEEN 1 AND 254", name=op.f("ck_keys_number_in_range")),
        sa.PrimaryKeyConstraint("kid", name=op.f("pk_keys")),
        sa.UniqueConstraint("number", name=op.f("uq_keys_number")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=True),
        sa.Column("email_verified_at", moment, nullable=True),
        sa.Column("password_hash", sa.String(length=255), nullable=True),
        sa.Column("password_expires_at", moment, nullable=True),
        sa.Column("role", sa.String(length=32), nullable=False),
        sa.Column("claims", sa.Text(), nullable=True),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("disabled_at", moment, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.String(length=32), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("token_digest", sa.LargeBinary(), nullable=False),
        sa.Column("key_number", sa.SmallInteger(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("rotated_at", moment, nullable=False),
        sa.Column("idle_expires_at", moment, nullable=False),
        sa.Column("absolute_expires_at", moment, nullable=False),
        sa.Column("ended_at", moment, nullable=True),
        sa.Column("end_reason", sa.String(length=32), nullable=True),
        sa.Column("idle_lifetime", sa.Integer(), server_default=sa.text("604800"), nullable=False),
        sa.Column("absolute_lifetime", sa.Integer(), server_default=sa.text("2592000"), nullable=False),
        sa.Column("retry_window", sa.Integer(), server_default=sa.text("60"), nullable=False),
        sa.Column("access_lifetime", sa.Integer(), server_default=sa.text("900"), nullable=False),
        sa.Column("scope", sa.String(length=1024), nullable=True),
        sa.Column("auth_time", moment, nullable=True),
        sa.Column("amr", sa.String(length=64), nullable=True),
        sa.Column("claims", sa.Text(), nullable=True),
        sa.Column("cnf_jkt", sa.String(length=43), nullable=True),
        sa.Column("device_id", sa.String(length=64), nullable=True),
        sa.Column("device_name", sa.String(length=100), nullable=True),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("user_agent", sa.String(length=256), nullable=True),
        sa.Column("moved_at", moment, nullable=True),
        sa.Column("retry_key_digest", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint("(ended_at IS NULL) = (end_reason IS NULL)", name=op.f("ck_sessions_ended_with_a_reason")),
        sa.CheckConstraint("generation >= 0", name=op.f("ck_sessions_generation_not_negative")),
        sa.CheckConstraint("idle_expires_at <= absolute_expires_at", name=op.f("ck_sessions_idle_within_absolute")),
        sa.CheckConstraint("key_number BETWEEN 1 AND 254", name=op.f("ck_sessions_key_number_in_range")),
        sa.CheckConstraint("length(token_digest) = 32", name=op.f("ck_sessions_token_digest_is_sha256")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
        postgresql_with={"fillfactor": "85"},
    )
    with op.batch_alter_table("sessions", schema=None) as batch_op:
        batch_op.create_index(
            "ix_sessions_ended_at",
            ["ended_at", "id"],
            unique=False,
            postgresql_where=sa.text("ended_at IS NOT NULL"),
            sqlite_where=sa.text("ended_at IS NOT NULL"),
        )
        batch_op.create_index(
            "ix_sessions_live",
            ["user_id", "id"],
            unique=False,
            postgresql_where=sa.text("ended_at IS NULL"),
            sqlite_where=sa.text("ended_at IS NULL"),
        )
        batch_op.create_index(batch_op.f("ix_sessions_user_id_id"), ["user_id", "id"], unique=False)
    op.create_table(
        "events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("event", sa.String(length=32), nullable=False),
        sa.Column("actor", sa.String(length=16), nullable=False),
        sa.Column("actor_id", sa.String(length=64), nullable=True),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("session_id", sa.Uuid(), nullable=True),
        sa.Column("client_id", sa.String(length=64), nullable=True),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index(
            "ix_events_actor",
            ["actor", "id"],
            unique=False,
            postgresql_where=sa.text("actor <> 'user'"),
            sqlite_where=sa.text("actor <> 'user'"),
        )
        batch_op.create_index(
            "ix_events_rare",
            ["event", "id"],
            unique=False,
            postgresql_where=sa.text("event NOT IN ('session_started', 'session_ended')"),
            sqlite_where=sa.text("event NOT IN ('session_started', 'session_ended')"),
        )
        batch_op.create_index("ix_events_user_id", ["user_id", "id"], unique=False)
    op.create_table(
        "policies",
        sa.Column("scope", sa.String(length=64), nullable=False),
        sa.Column("access_lifetime", sa.Integer(), nullable=True),
        sa.Column("access_jitter", sa.Integer(), nullable=True),
        sa.Column("idle_lifetime", sa.Integer(), nullable=True),
        sa.Column("absolute_lifetime", sa.Integer(), nullable=True),
        sa.Column("retry_window", sa.Integer(), nullable=True),
        sa.Column("session_limit", sa.Integer(), nullable=True),
        sa.Column("password_length", sa.Integer(), nullable=True),
        sa.Column("reauthentication_age", sa.Integer(), nullable=True),
        sa.Column("mode", sa.String(length=8), nullable=True),
        sa.Column("remember", sa.Boolean(), nullable=True),
        sa.Column("scopes", sa.String(length=1024), nullable=True),
        sa.Column("changed_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("scope", name=op.f("pk_policies")),
    )
    op.create_table(
        "issuers",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("configuration", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("changed_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_issuers")),
    )
    op.create_table(
        "identities",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("issuer", sa.String(length=255), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=True),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("last_used_at", moment, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_identities_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identities")),
        sa.UniqueConstraint("issuer", "subject", name=op.f("uq_identities_issuer_subject")),
    )
    op.create_table(
        "upstream_sessions",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("issuer_name", sa.String(length=32), nullable=False),
        sa.Column("identity_id", sa.Uuid(), nullable=True),
        sa.Column("upstream_id", sa.String(length=255), nullable=True),
        sa.Column("organization", sa.String(length=255), nullable=True),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("ordered_at", moment, nullable=True),
        sa.Column("due_at", moment, nullable=True),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("settled_at", moment, nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("failure", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(
            ["identity_id"], ["identities.id"], name=op.f("fk_upstream_sessions_identity_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_upstream_sessions")),
    )
    op.create_table(
        "taken_tokens",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=True),
        sa.Column("taken_at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        sa.CheckConstraint("length(digest) = 32", name=op.f("ck_taken_tokens_digest_is_sha256")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_taken_tokens")),
    )
    for table, columns in (
        ("identities", ["user_id"]),
        ("upstream_sessions", ["issuer_name", "upstream_id"]),
        ("upstream_sessions", ["identity_id"]),
        ("taken_tokens", ["expires_at"]),
    ):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.create_index(batch_op.f(f"ix_{table}_{'_'.join(columns)}"), columns, unique=False)
    with op.batch_alter_table("upstream_sessions", schema=None) as batch_op:
        batch_op.create_index(
            "ix_upstream_sessions_due",
            ["due_at"],
            unique=False,
            postgresql_where=sa.text("due_at IS NOT NULL"),
            sqlite_where=sa.text("due_at IS NOT NULL"),
        )
        open_ = sa.text("(due_at IS NOT NULL OR outcome = 'given_up')")
        batch_op.create_index(
            "ix_upstream_sessions_open", ["session_id"], unique=False, postgresql_where=open_, sqlite_where=open_
        )
    op.create_table(
        "pulse",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("keys", sa.BigInteger(), nullable=False),
        sa.Column("policies", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("issuers", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_pulse_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pulse")),
    )
    op.execute("INSERT INTO pulse (id, keys) VALUES (1, 0)")

    # The one row names no server, so no process believes Redis before a rebuild.
    beginning = "timestamptz 'epoch'" if op.get_context().dialect.name == "postgresql" else "0"
    op.execute(
        "INSERT INTO cache_fence (id, epoch, changed_at, vouches_from, incarnation)"
        f" VALUES (1, 'none', {beginning}, {beginning}, '')"
    )


def downgrade() -> None:
    with op.batch_alter_table("sessions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_sessions_user_id_id"))
        batch_op.drop_index(
            "ix_sessions_live",
            postgresql_where=sa.text("ended_at IS NULL"),
            sqlite_where=sa.text("ended_at IS NULL"),
        )
        batch_op.drop_index(
            "ix_sessions_ended_at",
            postgresql_where=sa.text("ended_at IS NOT NULL"),
            sqlite_where=sa.text("ended_at IS NOT NULL"),
        )

    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index("ix_events_user_id")
        batch_op.drop_index(
            "ix_events_rare",
            postgresql_where=sa.text("event NOT IN ('session_started', 'session_ended')"),
            sqlite_where=sa.text("event NOT IN ('session_started', 'session_ended')"),
        )
        batch_op.drop_index(
            "ix_events_actor",
            postgresql_where=sa.text("actor <> 'user'"),
            sqlite_where=sa.text("actor <> 'user'"),
        )

    op.drop_table("pulse")
    op.drop_table("taken_tokens")
    op.drop_table("upstream_sessions")
    op.drop_table("identities")
    op.drop_table("issuers")
    op.drop_table("policies")
    op.drop_table("events")
    op.drop_table("sessions")
    op.drop_table("users")
    op.drop_table("keys")
    op.drop_table("cache_fence")
