"""Where the database is: the settings that a migration needs too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from .postgres_url import PostgresURL
from .settings_values import checked_database_url, given, seen


class Place(BaseModel):
    """Where the database is: all that a migration needs. Unknown names are refused; no error repeats a value."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=False)

    data_dir: Annotated[Path, Field(description="Folder of the embedded default: SQLite database, master secret.")] = (
        Path("keyturn-data")
    )
    database_url: Annotated[
        SecretStr | None,
        BeforeValidator(checked_database_url),
        Field(description="`postgresql://…` for production. Unset: SQLite in DATA_DIR."),
    ] = None

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, str):
            return seen(value) if field.default == "" else given(value)
        if value is None or (isinstance(value, bool) and field.annotation is not bool):  # TOML has types
            raise PydanticCustomError("type", "has no value, or one of another type")
        return value

    @field_validator("data_dir")
    @classmethod
    def _a_path(cls, path: Path) -> Path:
        if path.parts[:1] and path.parts[0].startswith("~"):
            raise ValueError("begins with ~, which only a shell knows: write the whole path")
        if "?" in str(path):
            raise ValueError("must not contain a ?, which begins the options of SQLite's URL")
        return path

    @property
    def postgres(self) -> PostgresURL | None:
        """Where the Postgres is; None if the database is SQLite."""
        if self.database_url is None or (url := self.database_url.get_secret_value()).startswith("sqlite"):
            return None
        return PostgresURL.parse(url)

    @property
    def embedded(self) -> str:
        """One line for an operator who may have forgotten to name a database; empty if one is named."""
        if self.database_url is not None:
            return ""
        return f"embedded SQLite in {self.data_dir.absolute()}: KEYTURN_DATABASE_URL is not set"

    @property
    def where(self) -> str:
        """The database in one line for an operator, without password and options."""
        return str(self.postgres or self.sqlalchemy_url)

    @property
    def sqlalchemy_url(self) -> str:
        """The URL of the SQLite database, with the driver that Keyturn uses, or of a Postgres as it was given."""
        if self.database_url is None:
            return f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'keyturn.db'}"
        return re.sub(r"^postgres\w*(\+\w+)?://", "postgresql+asyncpg://", self.database_url.get_secret_value())
