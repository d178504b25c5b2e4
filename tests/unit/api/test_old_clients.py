"""Clients of version 0.1.0 keep working: they reject unknown fields in responses and need the ones they know.

The tables below are a record of that version. Do not extend them when a model gets a field: give the field a new
route or a new media type instead.
"""

import json
from typing import Any

import pytest
from pydantic import BaseModel

from squib import models
from squib.api import schema
from squib.api.app import create_app
from squib.api.schema import ProgressEvent
from squib.api.streams import ProgressResponse
from squib.protocol.frames import CONTENT_TYPE, FrameDecoder, FrameKind
from squib.store.database import now
from tests.fakes.asgi import Request
from tests.fakes.engine import Rig
from tests.fakes.files import FakeFiles
from tests.fakes.guest import running_vm

pytestmark = pytest.mark.anyio

VM_INFO = {
    "vm_id", "name", "state", "reason", "project", "runtime", "kernel", "rootfs", "vcpu_count", "mem_size_mib",
    "disk_size_mib", "boot_args", "env_names", "driver", "accelerator", "pid", "created_at", "started_at", "stopped_at",
}  # fmt: skip
ENGINE_INFO = {"version", "pid", "home", "driver", "accelerator", "started_at", "vm_count", "running_count"}
PROCESS_INFO = {
    "id", "pid", "argv", "user", "started_at", "background", "pty", "stdin", "readers", "stdout", "stderr", "running",
    "exit_code", "signal", "timed_out", "duration_s",
}  # fmt: skip
FILE_INFO = {"name", "type", "size", "mode", "uid", "gid", "user", "group", "mtime_ns", "link_target"}
ERROR = {"code", "message", "hint", "detail"}
RESPONSES = {
    "VMInfo": VM_INFO,
    "EngineInfo": ENGINE_INFO,
    "ProcessInfo": PROCESS_INFO,
    "OutputRange": {"start", "end"},
    "PtySize": {"rows", "cols"},
    "FileInfo": FILE_INFO,
    "FileEvent": {"type", "path", "source"},
    "Progress": {"step", "done", "total", "unit"},
    "WireError": ERROR,
    "ErrorBody": {"error"},
    "VMList": {"vms"},
    "ProcessList": {"processes"},
    "EnvVars": {"env"},
    "TarResult": {"entries", "bytes"},
}
REQUESTS = {
    "VMConfig": {
        "vm_id", "name", "project", "runtime", "vcpu_count", "mem_size_mib", "disk_size_mib", "kernel_path",
        "rootfs_path", "boot_args", "env_vars",
    },
    "CreateRequest": {"config", "start", "boot_timeout_s"},
    "StartRequest": {"boot_timeout_s"},
    "StopRequest": {"timeout_s"},
    "ExecRequest": {
        "argv", "shell", "login", "env", "cwd", "user", "sudo", "stdin", "timeout_s", "background", "pty",
    },
    "SignalRequest": {"signal"},
    "ResizeRequest": {"rows", "cols"},
    "EnvChange": {"set", "unset"},
    "MkdirRequest": {"path", "mode", "user", "parents"},
    "RenameRequest": {"source", "target"},
    "BuildRequest": {"name", "rebuild"},
    "KernelBuildRequest": {"rebuild"},
}  # fmt: skip
STATES = {"creating", "created", "starting", "running", "paused", "stopping", "stopped", "error", "deleting"}
FILE_TYPES = {"file", "directory", "symlink", "fifo", "socket", "char_device", "block_device"}
FILE_EVENTS = {"created", "modified", "deleted", "moved", "attributes", "overflow"}


def model(name: str) -> type[BaseModel]:
    found = getattr(models, name, None) or getattr(schema, name)
    assert issubclass(found, BaseModel)
    return found


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_has_the_fields_that_old_clients_know(name: str) -> None:
    assert model(name).model_fields.keys() == RESPONSES[name]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_may_have_the_fields_that_old_clients_send(name: str) -> None:
    fields = model(name).model_fields
    assert REQUESTS[name] <= fields.keys()
    assert [new for new in fields.keys() - REQUESTS[name] if fields[new].is_required()] == []


def test_states_and_kinds_are_the_ones_that_old_clients_know() -> None:
    """``unknown`` is what a client reads in place of a newer value, ``deleted`` its own. The engine sends neither.

    It sends ``suspended`` only to clients that know it.
    """
    assert set(models.VMState) - STATES == {"unknown", "deleted", "suspended"}
    assert set(models.FileType) - FILE_TYPES == {"unknown"}
    assert set(models.FileEventType) - FILE_EVENTS == {"unknown"}
    assert {kind.value: kind.name for kind in FrameKind} == {
        0: "STARTED", 1: "STDOUT", 2: "STDERR", 3: "EXIT", 4: "IDLE", 5: "ERROR",
    }  # fmt: skip
    assert CONTENT_TYPE == "application/vnd.squib.frames"


async def test_an_old_client_creates_lists_and_deletes(rig: Rig) -> None:
    async with rig.http() as (_, http):
        body = {"config": rig.config.model_dump(exclude_unset=True) | {"name": "web"}, "start": True}
        created = await http.post("/v1/vms", json=body, headers={"accept": "*/*"})
        assert (created.status_code, created.json().keys()) == (201, VM_INFO)
        listed = (await http.get("/v1/vms")).json()
        assert listed.keys() == {"vms"} and [vm.keys() for vm in listed["vms"]] == [VM_INFO]
        assert listed["vms"][0]["state"] in STATES
        assert (await http.get("/v1/engine")).json().keys() == ENGINE_INFO
        assert (await http.post("/v1/vms/web/stop", json={"timeout_s": 0})).json().keys() == VM_INFO
        assert (await http.delete("/v1/vms/web")).status_code == 204
        missing = (await http.get("/v1/vms/web")).json()
        assert missing.keys() == {"error"} and missing["error"].keys() <= ERROR


async def test_an_old_client_reads_a_suspended_vm_as_stopped(rig: Rig) -> None:
    async with rig.http() as (_, http):
        body = {"config": rig.config.model_dump(exclude_unset=True) | {"name": "web"}, "start": True}
        await http.post("/v1/vms", json=body)
        old = (await http.post("/v1/vms/web/suspend")).json()
        assert (old["state"], old.keys()) == ("stopped", VM_INFO)
        assert [vm["state"] for vm in (await http.get("/v1/vms")).json()["vms"]] == ["stopped"]
        for newer in ({"squib-client": "0.2.0"}, {"user-agent": "curl/8"}):
            assert (await http.get("/v1/vms/web", headers=newer)).json()["state"] == "suspended"


async def test_an_old_client_runs_commands_and_reads_files(rig: Rig) -> None:
    (root := rig.home.root.parent / "guest").mkdir()
    async with rig.engine() as engine, running_vm(engine, rig.config) as agent:
        agent.files, app = FakeFiles(root), create_app(engine)

        async def send(method: str, path: str, body: bytes = b"") -> Any:
            request = await Request(method, f"/v1/vms/web/{path}", body).send_to(app)
            assert request.status == 200
            return request

        request = await send("POST", "exec", json.dumps({"argv": ["echo", "a"], "background": True}).encode())
        assert dict(request.answered)["content-type"] == CONTENT_TYPE
        started, output, end = FrameDecoder().feed(bytes(request.received))
        assert (started.kind, started.json().keys()) == (FrameKind.STARTED, {"id", "pid"})
        assert (output.kind, output.payload) == (FrameKind.STDOUT, b"a\n")
        assert (end.kind, end.json().keys()) == (
            FrameKind.EXIT,
            {"exit_code", "signal", "timed_out", "duration_ms"},
        )
        [process] = (await send("GET", "processes")).json["processes"]
        assert (process.keys(), process["stdout"].keys()) == (PROCESS_INFO, {"start", "end"})

        written = (await send("PUT", "files?path=/f", b"content")).json
        assert (written.keys(), written["type"]) == (FILE_INFO, "file")
        assert (await send("GET", "files?path=/f")).received == b"content"
        assert (await send("GET", "files/stat?path=/f")).json == written
        entry, last = map(json.loads, (await send("GET", "files/list?path=/")).received.splitlines())
        assert entry.keys() >= FILE_INFO and last == {"end": True}  # in these lines 0.1.0 ignores unknown fields


async def test_an_old_client_builds_what_it_runs() -> None:
    """It does so before each ``squib run``."""
    file: dict[str, Any] = {"digest": "sha256:1", "size_bytes": 7, "built_at": now(), "in_use_by": [], "damage": "x"}

    async def image(on_progress: models.OnProgress) -> ProgressEvent:
        on_progress(models.Progress(step="squashfs", done=1, total=2, unit="MiB"))
        return ProgressEvent(image=models.ImageInfo(name="base", **file))

    async def kernel(on_progress: models.OnProgress) -> ProgressEvent:
        return ProgressEvent(kernel=models.KernelInfo(version="6.1", **file))

    lines = (await Request("POST", "/v1/images").send_to(ProgressResponse(image))).received.splitlines()
    step, last = map(json.loads, lines)
    assert (step.keys(), step["progress"].keys()) == ({"progress"}, {"step", "done", "total", "unit"})
    assert (last.keys(), last["image"].keys()) == (
        {"image"},
        {"name", "digest", "size_bytes", "built_at", "in_use_by"},
    )
    last = (await Request("POST", "/v1/kernels").send_to(ProgressResponse(kernel))).json
    assert (last.keys(), last["kernel"].keys()) == ({"kernel"}, {"version", "digest", "size_bytes", "built_at"})
