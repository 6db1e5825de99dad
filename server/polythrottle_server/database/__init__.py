"""Studies on disk: tables, migrations, and opening a database that brings itself up to date."""

from polythrottle_server.database.opening import Database, open_database

__all__ = ["Database", "open_database"]
