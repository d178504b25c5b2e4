"""Databases of every earlier schema open, keep their VMs, and are copied first."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from squib.errors import DiskFull, EngineStartFailed
from squib.models import CachedRef, HostFileRef, VMState
from squib.store import migrations
from squib.store.database import Store
from squib.store.migrations import MIGRATIONS, SCHEMA_VERSION, backup_path
from squib.store.records import BrokenRecord, LeaseKind, Owner

SCHEMAS = sorted((Path(__file__).parent / "schemas").glob("v*.sql"))


def restore(dump: Path, path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(dump.read_text())


def schema(path: Path) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(path)) as db:
        columns = "SELECT m.name, c.name, c.type FROM sqlite_master m, pragma_table_info(m.name) c ORDER BY 1, 2"
        return db.execute(columns).fetchall()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "squib.db"


def test_there_is_a_dump_of_every_earlier_schema() -> None:
    assert [dump.stem for dump in SCHEMAS] == [f"v{number}" for number in range(1, SCHEMA_VERSION)]


@pytest.mark.parametrize("dump", SCHEMAS, ids=lambda dump: dump.stem)
def test_an_older_database_keeps_its_vms(path: Path, dump: Path) -> None:
    restore(dump, path)
    with closing(Store(path)) as store:
        created, running, stopped = sorted(store.list_vms(), key=lambda vm: vm.vm_id)
        assert (created.state, created.driver, created.spec.runtime) == (VMState.CREATED, "qemu", "base")
        assert created.spec.kernel == CachedRef(digest="sha256:" + "ab" * 32)
        assert created.spec.rootfs == CachedRef(digest="sha256:" + "cd" * 32)
        assert (running.name, running.pid, running.spec.runtime) == ("own", 4711, None)
        assert running.spec.kernel == HostFileRef(path="/boot/vmlinux")
        assert running.spec.rootfs == HostFileRef(path="/srv/root.ext4")
        assert (stopped.name, stopped.reason, stopped.uid) == ("web", "stopped", 1879048199)
        spec = stopped.spec
        assert (spec.project, spec.vcpu_count, spec.mem_size_mib, spec.disk_size_mib) == ("shop", 2, 512, 2048)
        assert (spec.boot_args, spec.env_vars) == ("quiet", {"TOKEN": "it's", "RAW": "\udcff"})
        assert not spec.nested
        leases = [(lease.kind, lease.key) for lease in store.leases(Owner.vm("vm-running1"))]
        assert leases == [
            (LeaseKind.PROCESS, "vm/vm-running1/vmm"),
            (LeaseKind.CGROUP, "squib/0123abcd/vm-running1"),
            (LeaseKind.DIRECTORY, "vm/vm-running1"),
        ]


@pytest.mark.parametrize("dump", SCHEMAS, ids=lambda dump: dump.stem)
def test_a_migrated_database_is_as_a_new_one(path: Path, tmp_path: Path, dump: Path) -> None:
    restore(dump, path)
    Store(path).close()
    new = tmp_path / "new.db"
    Store(new).close()
    assert schema(path) == schema(new)


@pytest.mark.parametrize("dump", SCHEMAS, ids=lambda dump: dump.stem)
def test_a_copy_of_the_older_database_is_kept(path: Path, dump: Path) -> None:
    restore(dump, path)
    before = path.read_bytes()
    Store(path).close()
    copy = backup_path(path, int(dump.stem[1:]))
    assert copy.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(copy)) as kept, closing(sqlite3.connect(":memory:")) as original:
        original.deserialize(before)
        assert list(kept.iterdump()) == list(original.iterdump())
    Store(path).close()  # the present schema: nothing to copy
    assert sorted(file.name for file in path.parent.iterdir()) == ["squib.db", copy.name]


def test_a_new_database_is_not_copied(path: Path) -> None:
    Store(path).close()
    assert [file.name for file in path.parent.iterdir()] == ["squib.db"]


def test_a_step_that_fails_leaves_the_database_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restore(SCHEMAS[-1], path)
    before = schema(path)

    def fails(db: sqlite3.Connection) -> None:
        MIGRATIONS[-1](db)
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(migrations, "MIGRATIONS", (*MIGRATIONS[:-1], fails))
    with pytest.raises(DiskFull):
        Store(path)
    assert schema(path) == before
    monkeypatch.undo()
    Store(path).close()
    assert schema(path) != before


def test_a_disk_too_full_for_the_copy_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restore(SCHEMAS[-1], path)
    before = schema(path)

    def full(self: sqlite3.Connection, target: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    class NoRoom(sqlite3.Connection):
        backup = full  # type: ignore[assignment]

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(path, factory=NoRoom, **options))
    with pytest.raises(DiskFull):
        Store(path)
    monkeypatch.undo()
    assert schema(path) == before
    assert [file.name for file in path.parent.iterdir() if "v1" in file.name] == []


def test_a_configuration_that_cannot_be_read_breaks_only_its_own_vm(path: Path) -> None:
    restore(SCHEMAS[0], path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE vms SET config = 'garbage' WHERE name = 'web'")
        db.commit()
    with closing(Store(path)) as store:
        assert len(store.list_vms()) == 2
        assert isinstance(store.find("web"), BrokenRecord)


def test_a_newer_database_is_refused(path: Path) -> None:
    Store(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(EngineStartFailed, match=f"schema {SCHEMA_VERSION + 1}") as caught:
        Store(path)
    assert "upgrade squib" in caught.value.hint
