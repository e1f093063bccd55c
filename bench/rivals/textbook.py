"""The same API as the usual tutorials build it: FastAPI, SQLAlchemy on asyncpg, PyJWT, Argon2, a blocklist in Redis.

A dependency gives each request a database session. A refresh selects the row of the presented token, checks it, marks
it as used, inserts the next row and commits.

Nothing is slower than the recipe makes it:
- one SELECT, which joins the user,
- a lock on the token's row alone (without the lock, two parallel refreshes would both succeed),
- no ping before a statement and no reload after the commit,
- Argon2 outside the event loop,
- one pool of connections to Redis.
"""

import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

import jwt
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from fastapi import Depends, FastAPI, HTTPException, Response, status
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy import DateTime, ForeignKey, LargeBinary, String, func, make_url, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# -- settings

DATABASE_URL = make_url(os.environ.get("DATABASE_URL", "postgresql://localhost/textbook"))
REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost")
POOL_SIZE = int(os.environ.get("POOL_SIZE", "10"))
SECRET_KEY = os.environ.get("SECRET_KEY") or secrets.token_hex(32)
ISSUER = "https://auth.example.com"
ALGORITHM = "HS256"
ACCESS_TOKEN_LIFETIME = timedelta(minutes=15)
REFRESH_TOKEN_LIFETIME = timedelta(days=7)
SESSION_LIFETIME = timedelta(days=30)

# -- database

engine = create_async_engine(DATABASE_URL.set(drivername="postgresql+asyncpg"), pool_size=POOL_SIZE, max_overflow=0)
new_session = async_sessionmaker(engine, expire_on_commit=False)
redis: Redis = Redis.from_url(REDIS_URL, decode_responses=True)


class Base(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True), bytes: LargeBinary}  # noqa: RUF012  # SQLAlchemy's form


class User(Base):
    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    password_hash: Mapped[str] = mapped_column(String(255))
    role: Mapped[str] = mapped_column(String(32), default="user", server_default="user")
    is_active: Mapped[bool] = mapped_column(default=True, server_default="true")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class RefreshToken(Base):
    __tablename__ = "refresh_tokens"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"), index=True)
    session_id: Mapped[UUID] = mapped_column(index=True)
    session_expires_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


async def get_db() -> AsyncIterator[AsyncSession]:
    async with new_session() as db:
        yield db


Db = Annotated[AsyncSession, Depends(get_db)]

# -- schemas


class Login(BaseModel):
    email: str
    password: str


class Refresh(BaseModel):
    refresh_token: str


class TokenAnswer(BaseModel):
    access_token: str
    token_type: str = "Bearer"
    expires_in: int
    refresh_token: str
    refresh_expires_in: int
    session_id: UUID
    session_expires_in: int


class UserAnswer(BaseModel):
    id: UUID
    email: str
    role: str
    created_at: datetime


class Claims(BaseModel):
    iss: str
    sub: UUID
    sid: UUID
    jti: str
    iat: int
    exp: int
    role: str


# -- tokens and passwords

hasher = PasswordHasher()
DECOY = hasher.hash(secrets.token_hex())


def token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def issue(db: AsyncSession, user: User, session_id: UUID, session_expires_at: datetime, now: datetime) -> TokenAnswer:
    """Adds the row of a new refresh token to the transaction, and returns the answer with both tokens."""
    refresh_token = secrets.token_urlsafe(32)
    expires_at = min(now + REFRESH_TOKEN_LIFETIME, session_expires_at)
    db.add(
        RefreshToken(
            token_hash=token_hash(refresh_token),
            user_id=user.id,
            session_id=session_id,
            session_expires_at=session_expires_at,
            expires_at=expires_at,
        )
    )
    claims = {
        "iss": ISSUER,
        "aud": ISSUER,
        "sub": str(user.id),
        "sid": str(session_id),
        "jti": secrets.token_hex(16),
        "role": user.role,
        "iat": now,
        "exp": now + ACCESS_TOKEN_LIFETIME,
    }
    return TokenAnswer(
        access_token=jwt.encode(claims, SECRET_KEY, algorithm=ALGORITHM),
        expires_in=int(ACCESS_TOKEN_LIFETIME.total_seconds()),
        refresh_token=refresh_token,
        refresh_expires_in=int((expires_at - now).total_seconds()),
        session_id=session_id,
        session_expires_in=int((session_expires_at - now).total_seconds()),
    )


async def is_password(password_hash: str, password: str) -> bool:
    try:
        return await run_in_threadpool(hasher.verify, password_hash, password)
    except (Argon2Error, InvalidHashError):
        return False


def refusal(detail: str) -> HTTPException:
    return HTTPException(status.HTTP_401_UNAUTHORIZED, detail, {"WWW-Authenticate": "Bearer"})


bearer = HTTPBearer(auto_error=False)


async def current_claims(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> Claims:
    if credentials is None:
        raise refusal("Not authenticated")
    try:
        decoded: dict[str, Any] = jwt.decode(
            credentials.credentials,
            SECRET_KEY,
            algorithms=[ALGORITHM],
            issuer=ISSUER,
            audience=ISSUER,
            options={"require": ["exp", "iat", "jti", "sub"]},
        )
    except jwt.InvalidTokenError:
        raise refusal("Invalid token") from None
    if await redis.exists(f"revoked:{decoded['jti']}"):
        raise refusal("Token has been revoked")
    return Claims(**decoded)


CurrentClaims = Annotated[Claims, Depends(current_claims)]

# -- routes


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    yield
    await engine.dispose()
    await redis.aclose()


app = FastAPI(lifespan=lifespan)


@app.post("/auth/login")
async def login(body: Login, db: Db, response: Response) -> TokenAnswer:
    user = await db.scalar(select(User).where(User.email == body.email.lower()))
    correct = await is_password(user.password_hash if user else DECOY, body.password)
    if user is None or not correct or not user.is_active:
        raise refusal("Incorrect email or password")
    now = datetime.now(UTC)
    answer = issue(db, user, uuid4(), now + SESSION_LIFETIME, now)
    await db.commit()
    response.headers["Cache-Control"] = "no-store"
    return answer


@app.post("/auth/refresh")
async def refresh(body: Refresh, db: Db, response: Response) -> TokenAnswer:
    row = (
        await db.execute(
            select(RefreshToken, User)
            .join(User, User.id == RefreshToken.user_id)
            .where(RefreshToken.token_hash == token_hash(body.refresh_token))
            .with_for_update(of=RefreshToken)
        )
    ).first()
    if row is None:
        raise refusal("Invalid refresh token")
    token, user = row
    now = datetime.now(UTC)
    if token.used_at is not None:  # a thief had this token or has its successor, so the whole session ends
        await end_session(db, token.session_id, now)
        raise refusal("Refresh token has already been used")
    if token.revoked_at is not None or token.expires_at <= now or not user.is_active:
        raise refusal("Invalid refresh token")
    token.used_at = now
    answer = issue(db, user, token.session_id, token.session_expires_at, now)
    await db.commit()
    response.headers["Cache-Control"] = "no-store"
    return answer


@app.post("/auth/logout", status_code=status.HTTP_204_NO_CONTENT)
async def logout(claims: CurrentClaims, db: Db) -> None:
    now = datetime.now(UTC)
    await end_session(db, claims.sid, now)
    await redis.set(f"revoked:{claims.jti}", "1", ex=max(1, claims.exp - int(now.timestamp())))


@app.get("/auth/verify")
async def verify(claims: CurrentClaims) -> Claims:
    return claims


@app.get("/auth/me")
async def me(claims: CurrentClaims, db: Db) -> UserAnswer:
    user = await db.get(User, claims.sub)
    if user is None or not user.is_active:
        raise refusal("Invalid token")
    return UserAnswer.model_validate(user, from_attributes=True)


async def end_session(db: AsyncSession, session_id: UUID, now: datetime) -> None:
    await db.execute(
        update(RefreshToken)
        .where(RefreshToken.session_id == session_id, RefreshToken.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    await db.commit()
