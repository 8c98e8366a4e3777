"""The backend, under the name that Django looks for."""

from django.db.backends.sqlite3.base import DatabaseWrapper as SQLite


# Django ships no types, so its class is Any to mypy.
class DatabaseWrapper(SQLite):  # type: ignore[misc]
    """SQLite's own is usable whatever happened to it. Those of servers send a query, and so does this one."""

    def is_usable(self) -> bool:
        """Return whether the connection answers."""
        try:
            self.connection.execute("SELECT 1")
        except self.Database.Error:
            return False
        return True
