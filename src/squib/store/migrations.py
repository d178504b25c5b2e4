"""The database schema, and the numbered steps that create it.

Each step runs in one transaction and increments ``PRAGMA user_version``. Before the first step, a copy of the file is
kept in the same directory. The same steps create a new database, so there is only one path to the current schema.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from squib.errors import EngineStartFailed
from squib.host.files import sync_directory
from squib.undo import Undo

Step = Callable[[sqlite3.Connection], None]


def _create(db: sqlite3.Connection) -> None:
    """Create schema 1: VMs with their configuration, and leases of VMs."""
    db.execute("""
        CREATE TABLE vms (
            vm_id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL, reason TEXT NOT NULL,
            config TEXT NOT NULL, kernel TEXT NOT NULL, rootfs TEXT NOT NULL, machine_id TEXT NOT NULL, uid INTEGER,
            accelerator TEXT NOT NULL, pid INTEGER, created_at TEXT NOT NULL, started_at TEXT, stopped_at TEXT
        ) STRICT""")
    db.execute("""
        CREATE TABLE leases (
            lease_id INTEGER PRIMARY KEY AUTOINCREMENT, vm_id TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL,
            UNIQUE (kind, key)
        ) STRICT""")


def _specs_and_owners(db: sqlite3.Connection) -> None:
    """Migrate to schema 2: VM specs, drivers, bonds; leases of any owner."""
    db.execute("ALTER TABLE vms ADD COLUMN spec TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE vms ADD COLUMN driver TEXT NOT NULL DEFAULT 'qemu'")
    db.execute("ALTER TABLE vms ADD COLUMN bound INTEGER NOT NULL DEFAULT 0")
    for vm_id, config, kernel, rootfs in db.execute("SELECT vm_id, config, kernel, rootfs FROM vms").fetchall():
        db.execute("UPDATE vms SET spec = ? WHERE vm_id = ?", (_spec_of_config(config, kernel, rootfs), vm_id))
    for column in ("config", "kernel", "rootfs"):
        db.execute(f"ALTER TABLE vms DROP COLUMN {column}")
    db.execute("ALTER TABLE leases RENAME TO old_leases")
    db.execute("""
        CREATE TABLE leases (
            lease_id INTEGER PRIMARY KEY AUTOINCREMENT, owner_kind TEXT NOT NULL, owner_id TEXT NOT NULL,
            kind TEXT NOT NULL, key TEXT NOT NULL, UNIQUE (kind, key)
        ) STRICT""")
    db.execute("""
        INSERT INTO leases (lease_id, owner_kind, owner_id, kind, key)
        SELECT lease_id, 'vm', vm_id, kind,
               CASE kind WHEN 'process' THEN 'vm/' || vm_id || '/vmm'
                         WHEN 'directory' THEN 'vm/' || vm_id
                         ELSE key END
        FROM old_leases""")
    db.execute("DROP TABLE old_leases")


def _spec_of_config(config: str, kernel: str, rootfs: str) -> str:
    """Convert a configuration of schema 1 to a spec.

    An unreadable configuration is kept unchanged. The VM is then listed as damaged.
    """
    try:
        old = json.loads(config)
        runtime = None if old["rootfs_path"] else old["runtime"]
        kept = ("project", "vcpu_count", "mem_size_mib", "disk_size_mib", "boot_args", "env_vars")
        spec = {"version": 1, "runtime": runtime} | {name: old[name] for name in kept}
    except (ValueError, KeyError, TypeError):
        return config
    return json.dumps(spec | {"kernel": _asset_ref(kernel), "rootfs": _asset_ref(rootfs)})


def _asset_ref(text: str) -> dict[str, str]:
    return {"kind": "cached", "digest": text} if text.startswith("sha256:") else {"kind": "file", "path": text}


MIGRATIONS: tuple[Step, ...] = (_create, _specs_and_owners)
SCHEMA_VERSION = len(MIGRATIONS)


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Migrate the database at ``path`` to `SCHEMA_VERSION`.

    ``db`` is in autocommit mode.

    Raises `EngineStartFailed` if a newer squib wrote it, and SQLite's errors.
    """
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found > SCHEMA_VERSION:
        raise EngineStartFailed(
            f"the database {path} has schema {found}; this squib supports schemas up to {SCHEMA_VERSION}",
            hint="upgrade squib, or set SQUIB_HOME to another directory",
        )
    if 0 < found < SCHEMA_VERSION:
        _keep_copy(db, backup_path(path, found))
    for number, step in enumerate(MIGRATIONS[found:], found + 1):
        with Undo(lambda: _roll_back(db)):
            db.execute("BEGIN IMMEDIATE")
            step(db)
            db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        db.execute("ROLLBACK")


def backup_path(path: Path, version: int) -> Path:
    """Return the path of the backup of a database with schema ``version``.

    The backup is made before a migration, and kept.
    """
    return path.with_name(f"{path.name}.v{version}")


def _keep_copy(db: sqlite3.Connection, target: Path) -> None:
    """Copy the database.

    ``target`` appears only when the copy is complete and on the disk.
    """
    partial = target.with_name(f"{target.name}.partial")
    partial.unlink(missing_ok=True)
    with Undo(lambda: partial.unlink(missing_ok=True)):
        copy = sqlite3.connect(partial)
        try:
            partial.chmod(0o600)
            db.backup(copy)
        finally:
            copy.close()
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    sync_directory(target.parent)
