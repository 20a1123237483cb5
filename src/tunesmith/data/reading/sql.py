"""Rows of a query, through SQLAlchemy (`tunesmith[sql]`): `sqlite:///faq.db#SELECT question, answer FROM faq`."""

import hashlib
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from tunesmith.data.example import Row, Source
from tunesmith.data.reading import secrets
from tunesmith.errors import UserError

DATABASES = frozenset(
    "sqlite postgresql postgres mysql mariadb mssql oracle duckdb snowflake bigquery redshift clickhouse trino "
    "cockroachdb databricks hana db2 firebird".split()
)
"""What URLs of databases begin with, before `+driver` and `://`."""

FETCHED = 1000
"""Rows that are fetched at once."""

_TABLE = re.compile(r'[\w.]+|"[^"]+"')
_READS = re.compile(r"\s*(?:--[^\n]*\n\s*|/\*.*?\*/\s*)*\(*\s*(select|with|values|table|from|show)\b", re.I | re.S)


@dataclass(frozen=True, slots=True)
class SqlQuery:
    """A query of a database, or a table.

    Attributes:
        url: of the database, as SQLAlchemy takes it; `${NAME}` is an environment variable.
        query: that reads rows.
        directory: where the file of an SQLite database is looked up.
    """

    url: str
    query: str
    directory: Path

    @classmethod
    def parse(cls, given: str, directory: Path) -> "SqlQuery":
        """A query as a recipe names it: the URL, `#`, and the query or the name of a table.

        Args:
            given: as in the recipe.
            directory: where the file of an SQLite database is looked up.

        Raises:
            UserError: it has no query, one that writes, or a password in clear.
        """
        url, _, query = given.partition("#")
        query = " ".join(query.split()).rstrip(";")
        if not query:
            raise UserError(f"{secrets.shown(url)} has no query. Write {secrets.shown(url)}#SELECT … or #TABLE.")
        secrets.refuse_password(url)
        if _TABLE.fullmatch(query):
            query = f"SELECT * FROM {query}"  # a name alone
        if not _READS.match(query):
            raise UserError(
                f"{secrets.shown(url)}: only queries that read are run, and this one begins {query[:20]!r}."
            )
        return cls(url, query, directory)

    def __str__(self) -> str:
        return f"{secrets.shown(self.url)}#{self.query}"

    def rows(self) -> Iterator[Row]:
        """The rows, fetched in parts, without a change to the database.

        Raises:
            UserError: SQLAlchemy or the database's driver is not installed, or the query fails.
        """
        with self._plain_errors(), self._connected() as connection:
            from sqlalchemy import text

            result = connection.execute(text(self.query.replace(":", r"\:")))
            columns = list(result.keys())
            twice = next((column for column in columns if columns.count(column) > 1), None)
            if twice is not None:
                raise UserError(f"{self}: two columns are named {twice!r}. Name them with AS.")
            for number, row in enumerate(result, 1):
                yield Row(
                    {name: _plain(value) for name, value in zip(columns, row, strict=True)}, Source(str(self), number)
                )

    def fingerprint(self) -> str:
        """The SHA-256 of all rows in their order, which takes as long as the query.

        Raises:
            UserError: as `rows`.
        """
        digest = hashlib.sha256()
        for row in self.rows():
            digest.update(repr(row.values).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        from sqlalchemy import create_engine
        from sqlalchemy.engine import make_url

        url = make_url(secrets.expanded(self.url))
        if url.get_backend_name() == "sqlite":
            file = self.directory / (url.database or "")
            if not file.is_file():
                raise UserError(f"{self}: there is no file {url.database or '(none)'}, and none is made.")
            url = url.set(database=str(file))
        engine = create_engine(url)
        try:
            with engine.connect() as connection:
                yield connection.execution_options(yield_per=FETCHED)
        finally:
            engine.dispose()

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        if importlib.util.find_spec("sqlalchemy") is None:
            raise UserError(f'{self} is read through SQLAlchemy, which is not installed: pip install "tunesmith[sql]"')
        from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

        try:
            yield
        except ModuleNotFoundError as error:
            raise UserError(
                f"{self} needs the driver {error.name}, which is not installed: pip install {error.name}"
            ) from None
        except NoSuchModuleError:
            raise UserError(
                f"{self}: SQLAlchemy has no dialect for {self.url.partition('://')[0]}. Install one, or check the URL."
            ) from None
        except (SQLAlchemyError, ValueError) as error:
            cause = getattr(error, "orig", None) or error
            first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            raise UserError(f"{self} cannot be read: {_without(first, self.url)}.") from None


def _without(message: str, url: str) -> str:
    """A driver's message, which may quote the URL, without what the environment variables in it hold."""
    for secret in re.findall(r"://[^:@/]*:([^@/]+)@", secrets.expanded(url)):
        message = message.replace(secret, "***")
    return message.rstrip(".")


def _plain(value: Any) -> Any:
    """A value as JSON would have it."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    return value.hex() if isinstance(value, bytes | memoryview) else value
