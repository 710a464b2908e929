"""Migrations, in order. Tables of the ORM are generated; the hot tables are the SQL files in `sql/`, read as they are."""

from pathlib import Path

_SQL = Path(__file__).with_name("sql")


def sql(name: str) -> str:
    """The text of `sql/<name>.sql`."""
    return (_SQL / f"{name}.sql").read_text(encoding="utf-8")
