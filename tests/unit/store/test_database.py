"""The database: what is written is read, of two callers one wins, and what is wrong with the file is said."""

import os
import sqlite3
import stat
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import pytest

from squib.errors import DatabaseFailed, DiskFull, EngineError, EngineStartFailed, NameTaken, NotFound, RecordCorrupt
from squib.models import CachedRef, HostFileRef, VMState
from squib.store.database import Store
from squib.store.migrations import SCHEMA_VERSION
from squib.store.records import BrokenRecord, Lease, LeaseKind, Owner, OwnerKind, VMRecord, VMSpec
from squib.store.repair import damaged_copies

CREATED_AT = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)


def make_spec(**fields: object) -> VMSpec:
    spec = VMSpec(
        vcpu_count=1,
        mem_size_mib=128,
        disk_size_mib=1024,
        kernel=CachedRef(digest="sha256:" + "5c" * 32),
        rootfs=HostFileRef(path="/images/root.squashfs"),
    )
    return spec.model_copy(update=fields)


def make_record(vm_id: str = "vm-1", **columns: object) -> VMRecord:
    record = VMRecord(
        vm_id=vm_id,
        name=vm_id,
        state=VMState.CREATED,
        reason="",
        spec=make_spec(),
        driver="qemu",
        accelerator="tcg",
        machine_id="0" * 32,
        uid=None,
        pid=None,
        bound=False,
        created_at=CREATED_AT,
        started_at=None,
        stopped_at=None,
    )
    return replace(record, **columns)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "squib.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path)
    yield store
    store.close()


def test_a_record_comes_back_as_it_was_from_a_new_store(path: Path) -> None:
    spec = make_spec(
        project="lab",
        vcpu_count=3,
        mem_size_mib=512,
        boot_args="quiet",
        nested=True,
        env_vars={"A": "é\n'\"", "B": ""},
    )
    record = make_record(
        name="web",
        spec=spec,
        uid=0x7000_0001,
        pid=4711,
        reason="it's fine",
        started_at=CREATED_AT,
        stopped_at=CREATED_AT,
    )
    store = Store(path)
    store.add_vm(record)
    store.close()
    store = Store(path)
    assert store.get_vm("web") == record
    assert store.get_vm("vm-1").spec.env_vars == {"A": "é\n'\"", "B": ""}
    store.close()


def test_an_environment_that_is_not_utf8_comes_back(store: Store) -> None:
    """Bytes that are not UTF-8 are lone surrogates in a `str`, as in `os.environ`."""
    store.add_vm(make_record(spec=make_spec(env_vars={"RAW": "caf\udce9"})))
    assert store.get_vm("vm-1").spec.env_vars == {"RAW": "caf\udce9"}


def test_the_table_has_a_column_for_each_field(store: Store) -> None:
    columns = {row[1] for row in store._db.execute("PRAGMA table_info(vms)")}
    assert columns == {field.name for field in fields(VMRecord)}


@pytest.mark.parametrize("ref", ["one", "two"])
def test_a_vm_is_found_by_id_and_by_name(store: Store, ref: str) -> None:
    store.add_vm(make_record("one", name="two"))
    store.add_vm(make_record("other"))
    assert store.get_vm(ref).vm_id == "one"


def test_a_vm_that_is_not_there_is_not_found(store: Store) -> None:
    store.add_vm(make_record("one"))
    for ref in ("nosuch", "ONE", "on", "%", ""):
        with pytest.raises(NotFound, match="no VM has the ID or name"):
            store.get_vm(ref)


@pytest.mark.parametrize(
    ("vm_id", "name", "taken"),
    [("one", "new", "one"), ("two", "new", "two"), ("new", "one", "one"), ("new", "two", "two")],
)
def test_ids_and_names_are_unique_among_each_other(store: Store, vm_id: str, name: str, taken: str) -> None:
    store.add_vm(make_record("one", name="two"))
    with pytest.raises(NameTaken, match=f"'{taken}' is already the ID or name of one"):
        store.add_vm(make_record(vm_id, name=name))
    assert [vm.vm_id for vm in store.list_vms()] == ["one"]
    store.add_vm(make_record("new"))


def test_vms_are_listed_oldest_first(store: Store) -> None:
    for vm_id, second in (("c", 2), ("a", 3), ("b", 1)):
        store.add_vm(make_record(vm_id, created_at=CREATED_AT.replace(second=second)))
    assert [vm.vm_id for vm in store.list_vms()] == ["b", "c", "a"]


def test_of_two_callers_one_wins_a_change_of_state(store: Store) -> None:
    store.add_vm(make_record())
    wins = [
        store.change_state(
            "vm-1", expected={VMState.CREATED, VMState.STOPPED}, to=VMState.STARTING, reason=f"caller {n}"
        )
        for n in (1, 2)
    ]
    assert wins == [True, False]
    assert (store.get_vm("vm-1").state, store.get_vm("vm-1").reason) == (VMState.STARTING, "caller 1")


def test_a_change_that_loses_changes_no_other_column(store: Store) -> None:
    store.add_vm(make_record(pid=7))
    before = store.get_vm("vm-1")
    assert not store.change_state(
        "vm-1", expected={VMState.RUNNING}, to=VMState.STOPPED, pid=None, stopped_at=CREATED_AT
    )
    assert not store.change_state("vm-1", expected=(), to=VMState.STOPPED)
    assert not store.change_state("nosuch", expected=set(VMState), to=VMState.STOPPED)
    assert store.get_vm("vm-1") == before


def test_a_change_of_state_touches_one_vm_and_the_columns_it_names(store: Store) -> None:
    store.add_vm(make_record("vm-1", pid=7))
    store.add_vm(make_record("vm-2", pid=8))
    assert store.change_state("vm-1", expected={VMState.CREATED}, to=VMState.STOPPED, pid=None, stopped_at=CREATED_AT)
    found = store.get_vm("vm-1")
    assert found == make_record("vm-1", state=VMState.STOPPED, stopped_at=CREATED_AT)
    assert store.get_vm("vm-2") == make_record("vm-2", pid=8)


def test_a_column_that_does_not_exist_is_a_mistake(store: Store) -> None:
    store.add_vm(make_record())
    with pytest.raises(ValueError, match="pid = 1; --"):
        store.change_state("vm-1", expected=set(VMState), to=VMState.ERROR, **{"pid = 1; --": 1})
    assert store.get_vm("vm-1").state is VMState.CREATED


def test_a_pid_is_noted_and_a_vm_forgotten(store: Store) -> None:
    store.add_vm(make_record("vm-1"))
    store.add_vm(make_record("vm-2"))
    store.set_pid("vm-1", 4711)
    assert [vm.pid for vm in store.list_vms()] == [4711, None]
    store.remove_vm("vm-1")
    store.remove_vm("vm-1")
    assert [vm.vm_id for vm in store.list_vms()] == ["vm-2"]


def test_leases_are_listed_newest_first(store: Store) -> None:
    for kind in (LeaseKind.DIRECTORY, LeaseKind.CGROUP, LeaseKind.PROCESS):
        store.add_lease(Owner.vm("vm-1"), kind, f"{kind}-key")
    store.add_lease(Owner.vm("vm-2"), LeaseKind.DIRECTORY, "vm-2")
    newest_first = [LeaseKind.PROCESS, LeaseKind.CGROUP, LeaseKind.DIRECTORY]
    assert [lease.kind for lease in store.leases(Owner.vm("vm-1"))] == newest_first
    assert [lease.owner.id for lease in store.leases()] == ["vm-2", "vm-1", "vm-1", "vm-1"]
    assert store.leases(Owner.vm("nosuch")) == []


def test_a_lease_that_is_taken_again_is_the_newest_only_if_it_was_released(store: Store) -> None:
    store.add_lease(Owner.vm("vm-1"), LeaseKind.DIRECTORY, "vm-1")
    store.add_lease(Owner.vm("vm-1"), LeaseKind.PROCESS, "vm-1")
    store.add_lease(Owner.vm("vm-1"), LeaseKind.DIRECTORY, "vm-1")
    process, directory = store.leases(Owner.vm("vm-1"))
    assert (process.kind, directory.kind) == (LeaseKind.PROCESS, LeaseKind.DIRECTORY)
    store.remove_lease(directory)
    store.add_lease(Owner.vm("vm-1"), LeaseKind.DIRECTORY, "vm-1")
    assert [lease.kind for lease in store.leases(Owner.vm("vm-1"))] == [LeaseKind.DIRECTORY, LeaseKind.PROCESS]


def test_a_lease_is_removed_alone_and_twice(store: Store) -> None:
    store.add_lease(Owner.vm("vm-1"), LeaseKind.DIRECTORY, "vm-1")
    store.add_lease(Owner.vm("vm-1"), LeaseKind.PROCESS, "vm-1")
    process, directory = store.leases()
    store.remove_lease(process)
    store.remove_lease(process)
    assert store.leases() == [directory]


def test_a_database_of_another_schema_is_refused_and_kept(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(EngineStartFailed, match=f"has schema {SCHEMA_VERSION + 1}") as caught:
        Store(path)
    assert "SQUIB_HOME" in caught.value.hint
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)
    db.close()


def overwrite_page(path: Path, number: int) -> bytes:
    """Fill a page of a closed database with garbage; return what the file was then."""
    with path.open("r+b") as file:
        [page_bytes] = struct.unpack(">H", file.read(18)[16:])
        file.seek((number - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("table", "vms", "leases"), [("vms", [], 1), ("leases", ["vm-1"], 0), ("sqlite_master", [], 0)]
)
def test_a_damaged_page_costs_no_more_than_its_rows(path: Path, table: str, vms: list[str], leases: int) -> None:
    store = Store(path)
    store.add_vm(make_record("vm-1"))
    store.add_lease(Owner.vm("vm-1"), LeaseKind.DIRECTORY, "vm/vm-1")
    pages = dict(store._db.execute("SELECT name, rootpage FROM sqlite_master"))
    store.close()
    damaged = overwrite_page(path, pages.get(table, 1))
    store = Store(path)
    assert [vm.vm_id for vm in store.list_vms()] == vms
    assert len(store.leases()) == leases
    store.close()
    assert [copy.read_bytes() for copy in damaged_copies(path)] == [damaged]
    Store(path).close()
    assert len(damaged_copies(path)) == 1


def test_of_many_vms_those_on_other_pages_are_kept(path: Path) -> None:
    store = Store(path)
    names = [f"vm-{number:03d}" for number in range(200)]
    for name in names:
        store.add_vm(make_record(name))
    store.close()
    overwrite_page(path, path.stat().st_size // 4096 // 2)
    store = Store(path)
    kept = [vm.vm_id for vm in store.list_vms()]
    store.close()
    assert set(kept) < set(names)
    assert len(kept) > 100


def test_a_second_damage_is_kept_beside_the_first(path: Path) -> None:
    for content in (b"first" * 1000, b"second" * 1000):
        path.write_bytes(content)
        Store(path).close()
    assert [copy.read_bytes()[:5] for copy in damaged_copies(path)] == [b"first", b"secon"]


def test_damage_while_it_is_open_is_a_named_error_and_facts_are_kept(store: Store, path: Path) -> None:
    store.add_vm(make_record("vm-1"))
    with patch.object(store, "_db", wraps=store._db) as db:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        db.execute.side_effect = error
        with pytest.raises(DatabaseFailed, match=f"cannot use the database {path}: database disk image is malformed"):
            store.list_vms()
        store._facts.columns["vm-1"] = {"reason": "changed"}
        assert not store.flush()
    assert store.flush()
    assert store.get_vm("vm-1").reason == "changed"


@pytest.mark.parametrize("trouble", ["directory", "schema"])
def test_a_database_that_cannot_be_used_is_closed_again(
    path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def noted(*args: object, **options: object) -> sqlite3.Connection:
        opened.append(connect(*args, **options))  # type: ignore[call-overload]
        return opened[-1]

    if trouble == "directory":
        path.mkdir()
    else:
        db = connect(path)
        db.execute("PRAGMA user_version = 99")
        db.close()
    monkeypatch.setattr(sqlite3, "connect", noted)
    with pytest.raises(EngineError):
        Store(path)
    for db in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            db.execute("SELECT 1")


def test_a_full_disk_is_said_and_changes_nothing(store: Store, path: Path) -> None:
    store.add_vm(make_record("vm-1"))
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    big = make_record("big", spec=make_spec(env_vars={"A": "x" * 100_000}))
    with pytest.raises(DiskFull, match=str(path)) as caught:
        store.add_vm(big)
    assert "squib rm" in caught.value.hint
    assert [vm.vm_id for vm in store.list_vms()] == ["vm-1"]
    store.set_pid("vm-1", 7)
    store._db.execute("PRAGMA max_page_count = 100000")
    store.add_vm(big)
    assert store.get_vm("big") == big


def test_a_disk_that_is_full_when_the_database_is_opened_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(sqlite3.Connection):
        def execute(self, sql: str, *args: object) -> sqlite3.Cursor:  # type: ignore[override]
            if "journal_mode" in sql:
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *args)  # type: ignore[arg-type]

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(path, factory=Full, **options))
    with pytest.raises(DiskFull, match="no space left"):
        Store(path)


def test_another_failure_of_the_database_is_not_a_full_disk(store: Store, path: Path) -> None:
    store._db.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseFailed, match="locked"):
        store.add_vm(make_record())
    other.execute("ROLLBACK")
    other.close()
    store.add_vm(make_record())


def test_only_its_owner_may_read_the_database(path: Path) -> None:
    umask = os.umask(0)
    try:
        store = Store(path)
        store.add_vm(make_record(spec=make_spec(env_vars={"TOKEN": "hunter2"})))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        store.close()
    finally:
        os.umask(umask)
    assert modes == {"squib.db": 0o600, "squib.db-wal": 0o600, "squib.db-shm": 0o600}


VM_1 = Owner.vm("vm-1")


def full_disk(store: Store) -> AbstractContextManager[object]:
    """In the block every write finds the disk full."""
    return patch.object(store, "_transaction", side_effect=DiskFull("no space left"))


def test_on_a_full_disk_what_happened_is_kept_and_written_when_there_is_room(store: Store, path: Path) -> None:
    for vm_id in ("vm-1", "vm-2"):
        store.add_vm(make_record(vm_id))
    store.add_lease(VM_1, LeaseKind.CGROUP, "c")
    store.add_lease(VM_1, LeaseKind.DIRECTORY, "d")
    with full_disk(store):
        assert store.change_state("vm-1", expected={VMState.CREATED}, to=VMState.STARTING, pid=7)
        assert not store.change_state("vm-1", expected={VMState.CREATED}, to=VMState.DELETING)
        assert store.change_state("vm-1", expected={VMState.STARTING}, to=VMState.ERROR, reason="full", pid=None)
        store.remove_lease(store.leases(VM_1)[0])
        store.remove_vm("vm-2")
        assert not store.flush()
        assert [(vm.vm_id, vm.state, vm.reason) for vm in store.list_vms()] == [("vm-1", VMState.ERROR, "full")]
        assert [lease.kind for lease in store.leases()] == [LeaseKind.CGROUP]
        with pytest.raises(DiskFull):
            store.add_vm(make_record("vm-2"))
        with pytest.raises(DiskFull):
            store.add_lease(VM_1, LeaseKind.PROCESS, "p")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT state FROM vms ORDER BY vm_id").fetchall() == [("created",), ("created",)]
        assert store.flush()
        assert db.execute("SELECT vm_id, state, reason FROM vms").fetchall() == [("vm-1", "error", "full")]
        assert db.execute("SELECT kind FROM leases").fetchall() == [("cgroup",)]


def test_closing_writes_what_happened(path: Path) -> None:
    store = Store(path)
    store.add_vm(make_record("vm-1"))
    with full_disk(store):
        store.set_pid("vm-1", 7)
    store.close()
    store = Store(path)
    assert store.get_vm("vm-1").pid == 7
    store.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("spec = 'garbage'", "spec is not valid JSON: Expecting value"),
        ("spec = CAST(x'ff7b' AS TEXT)", "spec is not valid JSON"),  # not UTF-8
        (f"spec = '{'[' * 100_000}'", "spec is invalid"),
        ("spec = '{}'", "spec.vcpu_count is invalid: Field required"),
        ("spec = json_set(spec, '$.version', 2)", "version"),
        ("spec = json_set(spec, '$.kernel.kind', 'oci')", "kernel"),
        ("spec = json_set(spec, '$.env_vars.TOKEN', json('[1]'))", "env_vars.TOKEN"),
        ("state = 'dreaming'", "state is invalid: 'dreaming'"),
        ("state = 'unknown'", "state is invalid"),
        ("created_at = 'yesterday'", "created_at is invalid"),
        ("stopped_at = ''", "stopped_at is invalid"),
    ],
)
def test_a_row_that_cannot_be_read_hides_no_other(store: Store, change: str, reason: str) -> None:
    store.add_vm(make_record("vm-1", name="web", spec=make_spec(env_vars={"TOKEN": "hunter2"})))
    store.add_vm(make_record("vm-2"))
    store._db.execute(f"UPDATE vms SET {change} WHERE vm_id = 'vm-1'")
    assert [vm.vm_id for vm in store.list_vms()] == ["vm-2"]
    broken = store.find("web")
    assert isinstance(broken, BrokenRecord)
    assert (broken.vm_id, broken.name) == ("vm-1", "web")
    assert reason in broken.reason and "hunter2" not in broken.reason
    with pytest.raises(RecordCorrupt, match="web") as caught:
        store.get_vm("vm-1")
    assert caught.value.hint == "squib rm vm-1"
    assert not store.change_state("vm-1", expected=set(VMState), to=VMState.RUNNING)
    with pytest.raises(NameTaken):
        store.add_vm(make_record("web"))
    store.remove_vm("vm-1")
    assert store.all_vms() == store.list_vms() == [make_record("vm-2")]


def test_owners_of_all_kinds_hold_leases_and_several_processes(store: Store) -> None:
    owners = [Owner(kind, "x") for kind in OwnerKind]
    for owner in owners:
        for role in ("vmm", "net"):
            store.add_lease(owner, LeaseKind.PROCESS, owner.key(role))
    for owner in owners:
        assert [lease.key for lease in store.leases(owner)] == [f"{owner.kind}/x/net", f"{owner.kind}/x/vmm"]
    lease = store.leases()[0]
    assert isinstance(lease, Lease) and lease.owner == owners[-1]
