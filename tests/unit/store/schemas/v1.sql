BEGIN TRANSACTION;
CREATE TABLE leases (
    lease_id     INTEGER PRIMARY KEY AUTOINCREMENT,
    vm_id        TEXT NOT NULL,
    kind         TEXT NOT NULL,
    key          TEXT NOT NULL,
    UNIQUE (kind, key)
) STRICT;
INSERT INTO "leases" VALUES(1,'vm-created1','directory','vm-created1');
INSERT INTO "leases" VALUES(2,'vm-stopped1','directory','vm-stopped1');
INSERT INTO "leases" VALUES(3,'vm-running1','directory','vm-running1');
INSERT INTO "leases" VALUES(4,'vm-running1','cgroup','squib/0123abcd/vm-running1');
INSERT INTO "leases" VALUES(5,'vm-running1','process','vm-running1');
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
INSERT INTO "vms" VALUES('vm-created1','vm-created1','created','','{"vm_id": null, "name": null, "project": null, "runtime": "base", "vcpu_count": 1, "mem_size_mib": 128, "disk_size_mib": 10240, "kernel_path": null, "rootfs_path": null, "boot_args": "", "env_vars": {}}','sha256:abababababababababababababababababababababababababababababababab','sha256:cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd','00000000000000000000000000000000',NULL,'tcg',NULL,'2026-11-22T12:00:00+00:00',NULL,NULL);
INSERT INTO "vms" VALUES('vm-stopped1','web','stopped','stopped','{"vm_id": null, "name": "web", "project": "shop", "runtime": "python3.13", "vcpu_count": 2, "mem_size_mib": 512, "disk_size_mib": 2048, "kernel_path": null, "rootfs_path": null, "boot_args": "quiet", "env_vars": {"TOKEN": "it''s", "RAW": "\udcff"}}','sha256:abababababababababababababababababababababababababababababababab','sha256:cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd','00000000000000000000000000000000',1879048199,'tcg',NULL,'2026-11-22T12:00:00+00:00','2026-11-22T12:00:00+00:00','2026-11-22T12:00:00+00:00');
INSERT INTO "vms" VALUES('vm-running1','own','running','','{"vm_id": "vm-running1", "name": null, "project": null, "runtime": "base", "vcpu_count": 1, "mem_size_mib": 256, "disk_size_mib": 10240, "kernel_path": "/boot/vmlinux", "rootfs_path": "/srv/root.ext4", "boot_args": "", "env_vars": {}}','/boot/vmlinux','/srv/root.ext4','00000000000000000000000000000000',NULL,'tcg',4711,'2026-11-22T12:00:00+00:00','2026-11-22T12:00:00+00:00',NULL);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('leases',5);
COMMIT;
PRAGMA user_version = 1;
