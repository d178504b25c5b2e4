"""The engine's memory: VMs and leases in SQLite, in one file that only the engine opens.

State changes are compare-and-swap, so of two callers one wins. A lease is written before the host resource that it
stands for is taken, and deleted after that resource is released: what a crash leaves is always in here.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from squib.errors import EngineStartFailed, NameTaken, NotFound
from squib.host.files import disk_full
from squib.models import VMConfig, VMState

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE vms (
    vm_id        TEXT PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    state        TEXT NOT NULL,
    reason       TEXT NOT NULL,
    config       TEXT NOT NULL,
    kernel       TEXT NOT NULL,
    rootfs       TEXT NOT NULL,
    machine_id   TEXT NOT NULL,
    uid          INTEGER,
    accelerator  TEXT NOT NULL,
    pid          INTEGER,
    created_at   TEXT NOT NULL,
    started_at   TEXT,
    stopped_at   TEXT
) STRICT;
CREATE TABLE leases (
    lease_id     INTEGER PRIMARY KEY AUTOINCREMENT,
    vm_id        TEXT NOT NULL,
    kind         TEXT NOT NULL,
    key          TEXT NOT NULL,
    UNIQUE (kind, key)
) STRICT;
"""


class LeaseKind(StrEnum):
    """What a lease stands for; ``key`` names it."""

    DIRECTORY = "directory"
    """The VM's directory. Key: the VM's ID. Held from create to delete."""
    CGROUP = "cgroup"
    """Key: the cgroup's name. Held while the VM runs."""
    PROCESS = "process"
    """The VMM. Key: the VM's ID, whose ``vmm.lock`` the process holds. Held while the VM runs."""


@dataclass(frozen=True)
class Lease:
    """A note that a VM holds, or is about to take, a resource of the host."""

    lease_id: int
    vm_id: str
    kind: LeaseKind
    key: str


@dataclass(frozen=True)
class VMRecord:
    """A VM as stored. ``kernel`` and ``rootfs`` are digests of cached files or absolute paths of the user's."""

    vm_id: str
    name: str
    state: VMState
    reason: str
    config: VMConfig
    kernel: str
    rootfs: str
    machine_id: str
    uid: int | None
    accelerator: str
    pid: int | None
    created_at: datetime
    started_at: datetime | None
    stopped_at: datetime | None


_COLUMNS = [field.name for field in fields(VMRecord)]


def now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)


class Store:
    """The database at ``path``, created if it is not there.

    Raises `EngineStartFailed` if it is of another schema or no database, `DiskFull` from any write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise
        except sqlite3.DatabaseError as error:
            if _is_disk_full(error):
                raise disk_full(path) from error
            raise EngineStartFailed(
                f"the database {path} cannot be opened: {error}",
                hint=f"if nothing in it is needed: mv {path} {path}.broken",
            ) from error

    def _prepare(self) -> None:
        self._path.chmod(0o600)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found == 0:
            with self._transaction():
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif found != SCHEMA_VERSION:
            raise EngineStartFailed(
                f"the database {self._path} has schema {found}, this squib knows {SCHEMA_VERSION}",
                hint="use the squib version that wrote it, or another SQUIB_HOME",
            )

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._roll_back()
            if _is_disk_full(error):
                raise disk_full(self._path) from error
            raise
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def add_vm(self, record: VMRecord) -> None:
        """Register a VM. Raises `NameTaken` if its ID or name is another's ID or name."""
        with self._transaction():
            for ref in (record.vm_id, record.name):
                taken = self._db.execute("SELECT vm_id FROM vms WHERE vm_id = ? OR name = ?", (ref, ref)).fetchone()
                if taken:
                    raise NameTaken(
                        f"{ref!r} is already the ID or name of {taken[0]}", hint=f"squib rm {ref}, or choose another"
                    )
            row = [_to_column(getattr(record, name)) for name in _COLUMNS]
            marks = ", ".join("?" * len(row))
            self._db.execute(f"INSERT INTO vms ({', '.join(_COLUMNS)}) VALUES ({marks})", row)

    def get_vm(self, ref: str) -> VMRecord:
        """The VM whose ID or name is ``ref``. Raises `NotFound`."""
        row = self._db.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM vms WHERE vm_id = ? OR name = ? ORDER BY vm_id = ? DESC",
            (ref, ref, ref),
        ).fetchone()
        if row is None:
            raise NotFound(f"no VM has the ID or name {ref!r}", hint="squib ls shows all VMs")
        return _from_row(row)

    def list_vms(self) -> list[VMRecord]:
        """All VMs, oldest first."""
        rows = self._db.execute(f"SELECT {', '.join(_COLUMNS)} FROM vms ORDER BY created_at, vm_id")
        return [_from_row(row) for row in rows]

    def change_state(
        self, vm_id: str, *, expected: Collection[VMState], to: VMState, reason: str = "", **columns: object
    ) -> bool:
        """Move a VM to the state ``to`` if it is in one of ``expected``, with other columns in the same step.

        Returns whether this call did it.
        """
        values: dict[str, object] = {"state": to, "reason": reason, **columns}
        unknown = values.keys() - set(_COLUMNS)
        if unknown:
            raise ValueError(f"no such columns: {unknown}")
        assignments = ", ".join(f"{name} = ?" for name in values)
        marks = ", ".join("?" * len(expected))
        with self._transaction():
            cursor = self._db.execute(
                f"UPDATE vms SET {assignments} WHERE vm_id = ? AND state IN ({marks})",
                [*map(_to_column, values.values()), vm_id, *expected],
            )
            return cursor.rowcount == 1

    def set_config(self, vm_id: str, config: VMConfig) -> None:
        """Replace what a VM is made of."""
        with self._transaction():
            self._db.execute("UPDATE vms SET config = ? WHERE vm_id = ?", (_to_column(config), vm_id))

    def set_pid(self, vm_id: str, pid: int) -> None:
        """Note the VMM's pid, for people to read: nothing is ever killed by it."""
        with self._transaction():
            self._db.execute("UPDATE vms SET pid = ? WHERE vm_id = ?", (pid, vm_id))

    def remove_vm(self, vm_id: str) -> None:
        """Forget a VM. Its leases must be gone."""
        with self._transaction():
            self._db.execute("DELETE FROM vms WHERE vm_id = ?", (vm_id,))

    def add_lease(self, vm_id: str, kind: LeaseKind, key: str) -> None:
        """Note that a resource is about to be taken. Noting the same one again changes nothing."""
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO leases (vm_id, kind, key) VALUES (?, ?, ?)", (vm_id, kind, key))

    def leases(self, vm_id: str | None = None) -> list[Lease]:
        """The leases of one VM, or all; newest first, the order in which they are released."""
        rows = self._db.execute(
            "SELECT lease_id, vm_id, kind, key FROM leases WHERE ?1 IS NULL OR vm_id = ?1 ORDER BY lease_id DESC",
            (vm_id,),
        )
        return [Lease(lease_id, owner, LeaseKind(kind), key) for lease_id, owner, kind, key in rows]

    def remove_lease(self, lease: Lease) -> None:
        """Note that the resource is released."""
        with self._transaction():
            self._db.execute("DELETE FROM leases WHERE lease_id = ?", (lease.lease_id,))


def _is_disk_full(error: sqlite3.Error) -> bool:
    return "full" in str(error) or "disk I/O" in str(error)


def _to_column(value: object) -> object:
    if isinstance(value, VMConfig):
        # Not pydantic's own JSON, which refuses what is no UTF-8: lone surrogates here, as in os.environ.
        return json.dumps(value.model_dump())
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def _from_row(row: tuple[object, ...]) -> VMRecord:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["state"] = VMState(str(values["state"]))
    values["config"] = VMConfig.model_validate(json.loads(str(values["config"])))
    for name in ("created_at", "started_at", "stopped_at"):
        if values[name] is not None:
            values[name] = datetime.fromisoformat(str(values[name]))
    return VMRecord(**values)  # type: ignore[arg-type]
