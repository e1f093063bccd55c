"""The first start of the embedded default: folder, master secret and database are made."""

from __future__ import annotations

from ..own_files import make_data_dir
from ..settings import Settings
from ..storage.migrating import migrate
from ..tokens.master_secret import make_secret


def prepare(settings: Settings) -> None:
    """Makes what the embedded default needs before a process can open it. Blocks.

    Raises:
        ConfigurationError: the folder can't be made or used.
    """
    if settings.production:
        return
    if settings.database_url is None:
        make_data_dir(settings.data_dir)
        make_secret(settings)
    migrate(settings)
