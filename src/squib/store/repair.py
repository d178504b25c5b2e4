"""Repair a damaged database: make a new one from the rows that can be read.

The damaged file is kept as ``squib.db.damaged`` in the same directory. The VMs whose rows are lost are found by their
directories (`squib.core.reconcile`).
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from squib.errors import DatabaseFailed
from squib.host.files import disk_errors, sync, sync_directory
from squib.store.migrations import MIGRATIONS, SCHEMA_VERSION

log = logging.getLogger("squib.store")

_TABLES = ("vms", "leases")
_LOG_FILES = ("-wal", "-shm")


def repair_if_damaged(path: Path) -> None:
    """Check the database at ``path``, and replace it if it is damaged.

    A missing file is fine. If the repair is interrupted, the next call repeats it.

    Raises `DatabaseFailed` if the file cannot be opened, for example because another program has locked it, and
    `DiskFull`.
    """
    if not path.exists():
        return
    damage = _find_damage(path)
    if damage is None:
        return
    with disk_errors(path.parent):
        kept = _keep(path)
        version, rows = _salvage(kept)
        partial = path.with_name(f"{path.name}.partial")
        _write(partial, version, rows)
        for suffix in _LOG_FILES:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        partial.replace(path)
        sync_directory(path.parent)
    log.error(
        "the database %s was damaged (%s): kept as %s; %d VMs could be read", path, damage, kept, len(rows["vms"])
    )


def damaged_copies(path: Path) -> list[Path]:
    """Return the damaged databases that were set aside, oldest first."""
    return sorted(found for found in path.parent.glob(f"{path.name}.damaged*") if not found.name.endswith(_LOG_FILES))


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether an error means that the file's content is damaged."""
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _find_damage(path: Path) -> str | None:
    try:
        with contextlib.closing(sqlite3.connect(path)) as db:
            [result, *_] = db.execute("PRAGMA quick_check(1)").fetchone()
            return None if result == "ok" else " ".join(str(result).split())
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            return str(error)
        hint = "is it a file, and does another program have it open?"
        raise DatabaseFailed(f"cannot read the database {path}: {error}", hint=hint) from error


def _keep(path: Path) -> Path:
    """Copy the database and its log to a name of their own."""
    number = 1
    while (kept := path.with_name(f"{path.name}.damaged" + (f"-{number}" if number > 1 else ""))).exists():
        number += 1
    for suffix in (*_LOG_FILES, ""):  # the database last: with it, the copy is complete
        source = path.with_name(path.name + suffix)
        if source.exists():
            target = kept.with_name(kept.name + suffix)
            shutil.copyfile(source, target)
            target.chmod(0o600)
            sync(target)
    return kept


def _salvage(path: Path) -> tuple[int, dict[str, list[dict[str, object]]]]:
    """Return the schema version and the readable rows of each table."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.text_factory = lambda text: text.decode(errors="replace")
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.DatabaseError:
            version = 0
        if not 0 < version <= SCHEMA_VERSION:
            return SCHEMA_VERSION, {table: [] for table in _TABLES}
        return version, {table: list(_readable_rows(db, table)) for table in _TABLES}


def _readable_rows(db: sqlite3.Connection, table: str) -> Iterator[dict[str, object]]:
    """Yield the rows before the first damaged page and after the last one."""
    seen = set()
    for order in ("ASC", "DESC"):
        with contextlib.suppress(sqlite3.DatabaseError):
            cursor = db.execute(f"SELECT rowid, * FROM {table} NOT INDEXED ORDER BY rowid {order}")
            names = [column[0] for column in cursor.description[1:]]
            for rowid, *values in cursor:
                if rowid in seen:
                    break
                seen.add(rowid)
                yield dict(zip(names, values, strict=True))


def _write(path: Path, version: int, rows: dict[str, list[dict[str, object]]]) -> None:
    """Write a database of schema ``version`` with these rows.

    Rows that it does not accept are left out.
    """
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        path.chmod(0o600)
        db.execute("BEGIN")
        for step in MIGRATIONS[:version]:
            step(db)
        for table in _TABLES:
            for row in rows[table]:
                marks = ", ".join("?" * len(row))
                with contextlib.suppress(sqlite3.IntegrityError, sqlite3.OperationalError):
                    db.execute(f"INSERT OR IGNORE INTO {table} ({', '.join(row)}) VALUES ({marks})", [*row.values()])
        db.execute(f"PRAGMA user_version = {version}")
        db.execute("COMMIT")
    sync(path)
