"""The database file: one writer at a time, many readers, every commit durable."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.orm import Session

BUSY_TIMEOUT_MS: Final = 30_000
MIGRATIONS: Final = Path(__file__).with_name("migrations")


@dataclass
class Effects:
    """What a transaction asks to happen once it is durable.

    ``changes`` are (kind, name) pairs for watchers, ``sites`` those whose nodes have work, ``offers`` those with
    recovery tasks for nodes that have room for them, ``calls`` whatever else.
    """

    changes: dict[tuple[str, str], None] = field(default_factory=dict)
    sites: set[str] = field(default_factory=set)
    offers: set[str] = field(default_factory=set)
    calls: list[Callable[[], None]] = field(default_factory=list)


class View(Session):
    """A consistent view of the records. What it has read it keeps: the same row is not read twice."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: list[Any] = []


@event.listens_for(View, "loaded_as_persistent")
def _keep(view: View, row: Any) -> None:
    # Without this a row that nobody holds is forgotten: a session refers to its rows weakly.
    view.kept.append(row)


class Transaction(View):
    """A session that writes, and remembers what follows from its commit."""

    effects: Effects

    def changed(self, kind: str, name: str) -> None:
        """Tell watchers about an object once this is durable."""
        self.effects.changes[kind, name] = None

    def wake(self, site: str) -> None:
        """Wake the nodes of ``site`` once this is durable."""
        self.effects.sites.add(site)

    def offer(self, site: str) -> None:
        """Wake those nodes of ``site`` that have room for a recovery task, once this is durable."""
        self.effects.offers.add(site)

    def after(self, call: Callable[[], None]) -> None:
        """Call ``call`` once this is durable. It may be lost in a crash: something else has to find the work then."""
        self.effects.calls.append(call)


class Store:
    """Opens transactions on one SQLite file."""

    def __init__(self, path: Path, on_commit: Callable[[Effects], None] = lambda _: None) -> None:
        self.path = path
        self.on_commit = on_commit
        self._reader = _engine(path, "BEGIN")
        self._writer = _engine(path, "BEGIN IMMEDIATE")
        self._lock = threading.Lock()
        self._owner: int | None = None

    def migrate(self, revision: str = "head") -> None:
        """Bring the file to this version's schema, or up to ``revision``.

        References are not enforced meanwhile: to change a table, SQLite drops it and puts a copy into its place, and
        the drop would take along the rows that refer to it. They are checked before the end instead
        (https://www.sqlite.org/lang_altertable.html#otheralter).

        Raises:
            IntegrityError: a row would refer to nothing; the file stays as it was.
        """
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self._lock, self._writer.connect() as connection, _unreferenced(connection), connection.begin():
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            if broken:
                raise sqlite3.IntegrityError(f"rows that refer to nothing after a migration: {broken[:10]}")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a consistent view of the records."""
        with View(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Open a transaction; commits at the end, rolls back on an error. Effects happen after the commit.

        One at a time in this process (the lock saves SQLite's polling for its own); a nested call is a mistake in the
        code and says so instead of waiting for itself.
        """
        if self._owner == threading.get_ident():
            raise RuntimeError("a write transaction is open in this thread already")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                with Transaction(self._writer, expire_on_commit=False) as session:
                    session.effects = Effects()
                    yield session
                    session.commit()
                    effects = session.effects
            finally:
                self._owner = None
        self.on_commit(effects)
        for call in effects.calls:
            call()

    def close(self) -> None:
        """Give the file back."""
        self._reader.dispose()
        self._writer.dispose()


@contextmanager
def _unreferenced(connection: Connection) -> Iterator[None]:
    """Let references be; the setting is the driver's, since it has no effect within a transaction."""
    raw: Any = connection.connection.dbapi_connection
    raw.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        raw.execute("PRAGMA foreign_keys=ON")


def _engine(path: Path, begin: str) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",  # an epoch that was raised must survive a power cut
            "foreign_keys=ON",
            f"busy_timeout={BUSY_TIMEOUT_MS}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine
