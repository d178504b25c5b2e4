"""The engine's database: VMs and leases in an SQLite file.

Only the engine opens the file.

There are two kinds of writes. A *promise* is written before its act: a new VM, a lease, a changed spec. If it cannot be
written, the act does not happen. A *fact* is written after its act: a changed state, a released lease, a removed VM. If
the disk is full, facts are kept in memory, are part of every query's result, and are written as soon as there is space
(`flush`). If the engine is killed before that, the row is out of date, and the next engine settles the VM.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from squib.errors import DatabaseFailed, DiskFull, NameTaken, NotFound, RecordCorrupt
from squib.host.files import disk_full
from squib.models import VMState
from squib.store.migrations import migrate
from squib.store.records import BrokenRecord, Lease, LeaseKind, Owner, OwnerKind, VMRecord, VMSpec
from squib.store.repair import is_damage, repair_if_damaged
from squib.undo import Undo

log = logging.getLogger("squib.store")

_COLUMNS = [column.name for column in fields(VMRecord)]
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM vms"
_MAX_REASON = 200


def now() -> datetime:
    """Return the present time in UTC."""
    return datetime.now(UTC)


@dataclass
class _Facts:
    """Facts that could not be written yet."""

    columns: dict[str, dict[str, object]] = field(default_factory=dict)
    """Changed columns, by VM."""
    removed_vms: set[str] = field(default_factory=set)
    removed_leases: set[int] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.columns or self.removed_vms or self.removed_leases)


class Store:
    """The database at ``path``.

    Opening it creates it or migrates it to the current schema.

    Opening repairs a damaged file (`squib.store.repair`). It raises `EngineStartFailed` if a newer squib wrote the
    database. Promises raise `DiskFull`. Every call raises `DatabaseFailed` if the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._facts = _Facts()
        repair_if_damaged(path)
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            with Undo(self._db.close):
                path.chmod(0o600)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                migrate(self._db, path)
                self._db.text_factory = _decode  # not before: a migration must not replace bytes
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Write the remaining facts if possible, and close the file.

        Idempotent.
        """
        try:
            self.flush()
        except sqlite3.ProgrammingError:  # closed already
            return
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with Undo(self._roll_back):
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error

    def _roll_back(self) -> None:
        with suppress(sqlite3.DatabaseError):  # a file that cannot be read has no transaction any more
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _query(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.DatabaseError) -> Exception:
        """Return what to raise for an error of SQLite.

        An error in squib's own statements stays what it is.
        """
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            return error
        if _is_disk_full(error):
            return disk_full(self._path)
        if is_damage(error):
            hint = "squib engine stop --force   (VMs continue; the next engine repairs the database)"
        else:
            hint = "does another program have the file open? squib doctor checks the disk"
        return DatabaseFailed(f"cannot use the database {self._path}: {error}", hint=hint)

    def flush(self) -> bool:
        """Write the facts that are only in memory.

        Return whether nothing is left to write.
        """
        facts = self._facts
        if not facts:
            return True
        try:
            with self._transaction():
                for vm_id, columns in facts.columns.items():
                    assignments = ", ".join(f"{name} = ?" for name in columns)
                    values = [*map(_to_column, columns.values()), vm_id]
                    self._db.execute(f"UPDATE vms SET {assignments} WHERE vm_id = ?", values)
                for vm_id in facts.removed_vms:
                    self._db.execute("DELETE FROM vms WHERE vm_id = ?", (vm_id,))
                for lease_id in facts.removed_leases:
                    self._db.execute("DELETE FROM leases WHERE lease_id = ?", (lease_id,))
        except (DiskFull, DatabaseFailed) as error:
            log.warning("changes are kept in memory until they can be written: %s", error.message)
            return False
        self._facts = _Facts()
        return True

    # VMs: promises

    def add_vm(self, record: VMRecord) -> None:
        """Register a VM.

        Raises `NameTaken` if its ID or name is the ID or name of another VM, `DiskFull`.
        """
        self.check_free(record.vm_id, record.name)
        self.flush()  # a removed VM may have had this name
        with self._transaction():
            row = [_to_column(getattr(record, name)) for name in _COLUMNS]
            marks = ", ".join("?" * len(row))
            self._db.execute(f"INSERT INTO vms ({', '.join(_COLUMNS)}) VALUES ({marks})", row)

    def check_free(self, *refs: str) -> None:
        """Raise `NameTaken` if one of ``refs`` is the ID or name of a VM."""
        for ref in refs:
            for (vm_id,) in self._query("SELECT vm_id FROM vms WHERE ?1 IN (vm_id, name)", (ref,)):
                if vm_id not in self._facts.removed_vms:
                    raise NameTaken(
                        f"{ref!r} is already the ID or name of {vm_id}", hint=f"squib rm {ref}, or choose another name"
                    )

    def add_lost(self, vm_id: str, reason: str) -> None:
        """Register a VM whose row was lost: it is read as a `BrokenRecord`.

        Raises `DiskFull`.
        """
        values: dict[str, object] = dict.fromkeys(("spec", "driver", "accelerator", "machine_id"), "")
        values |= {"vm_id": vm_id, "name": vm_id, "state": VMState.ERROR, "reason": reason}
        values |= {"bound": False, "created_at": now().isoformat()}
        with self._transaction():
            marks = ", ".join("?" * len(values))
            self._db.execute(f"INSERT OR IGNORE INTO vms ({', '.join(values)}) VALUES ({marks})", [*values.values()])

    def set_spec(self, vm_id: str, spec: VMSpec) -> None:
        """Replace the spec of a VM. Raises `DiskFull`."""
        with self._transaction():
            self._db.execute("UPDATE vms SET spec = ? WHERE vm_id = ?", (_to_column(spec), vm_id))

    def set_bound(self, vm_id: str, bound: bool) -> None:
        """Bind a VM to a client, or make it independent. Raises `DiskFull`."""
        with self._transaction():
            self._db.execute("UPDATE vms SET bound = ? WHERE vm_id = ?", (bound, vm_id))

    # VMs: facts

    def change_state(
        self, vm_id: str, *, expected: Collection[VMState], to: VMState, reason: str = "", **columns: object
    ) -> bool:
        """Change a VM's state from one of ``expected`` to ``to``.

        Changes the other ``columns`` with it. Returns whether the state was changed: not if the VM is in another state,
        is absent or unreadable.
        """
        values: dict[str, object] = {"state": to, "reason": reason, **columns}
        if unknown := values.keys() - set(_COLUMNS):
            raise ValueError(f"no such columns: {unknown}")
        try:
            present = self.get_vm(vm_id)
        except (NotFound, RecordCorrupt):
            return False
        if present.vm_id != vm_id or present.state not in expected:
            return False
        self._note(vm_id, values)
        return True

    def set_pid(self, vm_id: str, pid: int) -> None:
        """Store the VMM's pid.

        It is for people to read: squib never uses it to find a process.
        """
        self._note(vm_id, {"pid": pid})

    def remove_vm(self, vm_id: str) -> None:
        """Remove a VM's row. Its leases must be released already."""
        self._facts.columns.pop(vm_id, None)
        self._facts.removed_vms.add(vm_id)
        self.flush()

    def _note(self, vm_id: str, values: dict[str, object]) -> None:
        self._facts.columns.setdefault(vm_id, {}).update(values)
        self.flush()

    # VMs: queries

    def get_vm(self, ref: str) -> VMRecord:
        """Return the VM whose ID or name is ``ref``.

        Raises `NotFound`, `RecordCorrupt` if its row is unreadable.
        """
        found = self.find(ref)
        if isinstance(found, BrokenRecord):
            raise RecordCorrupt(
                f"the database record of VM {found.name} is damaged: {found.reason}", hint=f"squib rm {ref}"
            )
        return found

    def find(self, ref: str) -> VMRecord | BrokenRecord:
        """Return the VM whose ID or name is ``ref``, readable or not.

        Raises `NotFound`.
        """
        rows = self._query(f"{_SELECT} WHERE ?1 IN (vm_id, name) ORDER BY vm_id = ?1 DESC", (ref,))
        for record in self._read(rows):
            return record
        raise NotFound(f"no VM has the ID or name {ref!r}", hint="squib ls shows all VMs")

    def list_vms(self) -> list[VMRecord]:
        """Return all VMs whose rows can be read, oldest first."""
        return [record for record in self.all_vms() if isinstance(record, VMRecord)]

    def all_vms(self) -> list[VMRecord | BrokenRecord]:
        """Return all VMs, oldest first, also those with unreadable rows."""
        return list(self._read(self._query(f"{_SELECT} ORDER BY created_at, vm_id")))

    def _read(self, rows: Iterable[tuple[object, ...]]) -> Iterator[VMRecord | BrokenRecord]:
        for row in rows:
            values = dict(zip(_COLUMNS, row, strict=True))
            vm_id = str(values["vm_id"])
            if vm_id in self._facts.removed_vms:
                continue
            changed = self._facts.columns.get(vm_id, {})
            yield _from_row(values | {name: _to_column(value) for name, value in changed.items()})

    # Leases

    def add_lease(self, owner: Owner, kind: LeaseKind, key: str) -> None:
        """Store that an owner is about to take a resource.

        Idempotent.

        Raises `DiskFull`.
        """
        self.flush()  # an earlier lease with this key may be among the facts
        with self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO leases (owner_kind, owner_id, kind, key) VALUES (?, ?, ?, ?)",
                (owner.kind, owner.id, kind, key),
            )

    def leases(self, owner: Owner | None = None) -> list[Lease]:
        """Return the leases of one owner, or all leases.

        Newest first: the order in which they are released.
        """
        where, values = ("", ()) if owner is None else ("WHERE owner_kind = ? AND owner_id = ?", (owner.kind, owner.id))
        rows = self._query(
            f"SELECT lease_id, owner_kind, owner_id, kind, key FROM leases {where} ORDER BY lease_id DESC", values
        )
        return [
            Lease(lease_id, Owner(OwnerKind(owner_kind), owner_id), LeaseKind(kind), key)
            for lease_id, owner_kind, owner_id, kind, key in rows
            if lease_id not in self._facts.removed_leases
        ]

    def remove_lease(self, lease: Lease) -> None:
        """Store that the resource is released.

        After a crash it may be released a second time, which is harmless.
        """
        self._facts.removed_leases.add(lease.lease_id)
        self.flush()


def _is_disk_full(error: sqlite3.Error) -> bool:
    return "full" in str(error) or "disk I/O" in str(error)


def _to_column(value: object) -> object:
    if isinstance(value, VMSpec):
        return value.to_json()
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def _decode(text: bytes) -> str:
    """Decode a column.

    Invalid UTF-8 damages one value; by default SQLite would fail the whole query.
    """
    return text.decode(errors="replace")


def _state(text: str) -> VMState:
    if text not in set(VMState) - {VMState.DELETED, VMState.UNKNOWN}:
        raise ValueError(f"{text!r} is not a state of a VM")
    return VMState(text)


_PARSERS: dict[str, Callable[[str], object]] = {
    "state": _state,
    "spec": VMSpec.from_json,
    "created_at": datetime.fromisoformat,
    "started_at": datetime.fromisoformat,
    "stopped_at": datetime.fromisoformat,
}


def _from_row(values: dict[str, object]) -> VMRecord | BrokenRecord:
    if values["spec"] == "":
        return BrokenRecord(str(values["vm_id"]), str(values["name"]), str(values["reason"]))
    read = values | {"bound": bool(values["bound"])}
    for column, parse in _PARSERS.items():
        if (value := values[column]) is not None:
            try:
                read[column] = parse(str(value))
            except (ValueError, RecursionError) as error:
                return BrokenRecord(str(values["vm_id"]), str(values["name"]), _describe(column, error))
    return VMRecord(**read)  # type: ignore[arg-type]


def _describe(column: str, error: ValueError | RecursionError) -> str:
    """Describe what is wrong with a column, without the VM's variables."""
    if isinstance(error, ValidationError):
        problem = error.errors(include_input=False, include_url=False)[0]
        text = f"{'.'.join(map(str, (column, *problem['loc'])))} is invalid: {problem['msg']}"
    elif isinstance(error, json.JSONDecodeError):
        text = f"{column} is not valid JSON: {error}"
    else:
        text = f"{column} is invalid: {error}"
    return " ".join(text.split())[:_MAX_REASON]
