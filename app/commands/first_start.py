"""The first start of the embedded default makes its folder, master secret and database."""

from __future__ import annotations

from ..own_files import make_data_dir
from ..settings import Settings
from ..storage.migrating import migrate
from ..tokens.master_secret import make_secret


def prepare(settings: Settings) -> None:
    """Makes folder, master secret and tables of the embedded default, if they are missing. Blocks the thread.

    Raises:
        ConfigurationError: the folder can't be made or used.
    """
    if settings.production:
        return
    if settings.database_url is None:
        make_data_dir(settings.data_dir)
        make_secret(settings)
    migrate(settings)
