"""An engine's API that only answers: it notes every request and says what it was told to say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

from squib.api.errors import http_status
from squib.errors import NoSuchProcess, NotFound, SquibError, to_wire
from squib.models import Check, EngineInfo, OutputRange, ProcessInfo, PtySize, VMInfo, VMState
from squib.protocol.frames import FrameKind, encode, encode_json
from squib.sdk.client import EngineClient

DIGEST = "sha256:" + "5c" * 32
NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)

Script = Callable[["FakeAPI"], AsyncIterator[bytes]]
"""What a command does: yields the frames after the first."""


def make_vm(vm_id: str = "vm-1", **fields: Any) -> VMInfo:
    values: dict[str, Any] = {
        "vm_id": vm_id,
        "name": vm_id,
        "state": VMState.RUNNING,
        "project": None,
        "runtime": "base",
        "kernel": DIGEST,
        "rootfs": DIGEST,
        "vcpu_count": 1,
        "mem_size_mib": 128,
        "disk_size_mib": 10240,
        "boot_args": "",
        "env_names": [],
        "driver": "qemu",
        "accelerator": "tcg",
        "pid": 4711,
        "created_at": NOW,
        "started_at": NOW,
        "stopped_at": None,
    }
    return VMInfo.model_validate(values | fields)


def make_process(process_id: str, **fields: Any) -> ProcessInfo:
    values: dict[str, Any] = {
        "id": process_id, "pid": 312, "argv": ["sleep", "9"], "user": "root", "started_at": NOW, "background": True,
        "pty": None, "stdin": False, "readers": 0, "stdout": OutputRange(), "stderr": OutputRange(), "running": True,
    }  # fmt: skip
    return ProcessInfo.model_validate(values | fields)


TERMINAL = {"pty": PtySize(), "argv": ["-bash"]}
"""Fields of a process with a terminal."""


def ends(code: int | None = 0, *, stdout: bytes = b"", stderr: bytes = b"", **end: object) -> Script:
    """A command that prints and ends."""

    async def script(api: FakeAPI) -> AsyncIterator[bytes]:
        if stdout:
            yield encode(FrameKind.STDOUT, stdout)
        if stderr:
            yield encode(FrameKind.STDERR, stderr)
        yield exit_frame(code, **end)

    return script


def exit_frame(code: int | None = 0, **end: object) -> bytes:
    values = {"exit_code": code, "signal": None, "timed_out": False, "duration_ms": 12}
    return encode_json(FrameKind.EXIT, values | end)


@dataclass
class Call:
    """A request: ``POST /vms/web/exec`` and its JSON body."""

    what: str
    body: Any = None


@dataclass
class FakeAPI:
    """Answers as an engine with ``vms``. ``fails`` maps a request to the error that it gets."""

    vms: dict[str, VMInfo] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    processes: dict[str, ProcessInfo] = field(default_factory=dict)
    script: Script = field(default_factory=lambda: ends())
    fails: dict[str, SquibError] = field(default_factory=dict)
    logs: list[bytes] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    stdin: bytearray = field(default_factory=bytearray)
    stdin_closed: asyncio.Event = field(default_factory=asyncio.Event)
    signalled: asyncio.Event = field(default_factory=asyncio.Event)
    env: dict[str, str] = field(default_factory=dict)
    damage: str = ""
    """What is wrong with the image and the kernel in the cache."""
    killed: bool = False
    """The connection of a command was closed before its end."""

    def add(self, vm_id: str = "vm-1", **fields: Any) -> VMInfo:
        vm = self.vms[vm_id] = make_vm(vm_id, **fields)
        return vm

    @property
    def made(self) -> list[str]:
        """The requests, in order, but those that hold a VM: they run beside the others."""
        return [call.what for call in self.calls if not call.what.endswith("/hold")]

    @property
    def held(self) -> list[str]:
        """The requests that hold a VM."""
        return [call.what for call in self.calls if call.what.endswith("/hold")]

    def body(self, what: str) -> Any:
        """The body of the one request ``what``."""
        (call,) = [call for call in self.calls if call.what == what]
        return call.body

    def client(self) -> EngineClient:
        """A client of this engine."""
        client = EngineClient(url="http://squib")
        client._http = httpx.AsyncClient(base_url="http://squib", transport=_Transport(self))
        return client

    async def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode().removeprefix("/v1")
        what = f"{request.method} {path}"
        if path.partition("?")[0].endswith("/stdin"):
            self.calls.append(Call(what))
            return await self._take_stdin(request)
        body = await request.aread()
        self.calls.append(Call(what, json.loads(body) if body else None))
        try:
            if error := self.fails.get(what):
                raise error
            return self._answer(request.method, path, self.calls[-1].body)
        except SquibError as error:
            return httpx.Response(http_status(error), json={"error": to_wire(error)})

    def _answer(self, method: str, path: str, body: Any) -> httpx.Response:
        route = path.partition("?")[0].strip("/").split("/")
        match method, route:
            case "GET", ["engine"]:
                return _json(
                    EngineInfo(
                        version="0.1.0", pid=7, home="/h", driver="qemu", accelerator="tcg", started_at=NOW,
                        vm_count=len(self.vms), running_count=0,
                    ).model_dump(mode="json")
                )  # fmt: skip
            case "GET", ["doctor"]:
                return _json({"checks": [check.model_dump(mode="json") for check in self.checks]})
            case "GET", ["images"]:
                return _json({"images": [_image("base") | {"damage": self.damage}]})
            case "GET", ["kernels"]:
                return _json({"kernels": [_KERNEL | {"damage": self.damage}]})
            case "POST", ["images"]:
                return _lines({"progress": {"step": "squashfs"}}, {"image": _image(body["name"])})
            case "POST", ["kernels"]:
                return _lines({"kernel": _KERNEL})
            case "DELETE", ["images" | "kernels", _]:
                return httpx.Response(204)
            case "GET", ["vms"]:
                return _json({"vms": [vm.model_dump(mode="json") for vm in self.vms.values()]})
            case "POST", ["vms"]:
                state = VMState.RUNNING if body["start"] else VMState.CREATED
                return _vm(self.add("vm-new", name=body["config"].get("name") or "vm-new", state=state))
            case "GET", ["engine" | "vms", *_, "logs"]:
                return httpx.Response(200, stream=_Stream(self._log()))
            case "POST", ["vms", ref, "exec"]:
                self._find(ref)
                return httpx.Response(200, stream=_Stream(self._run()))
            case "GET", ["vms", ref, "processes"]:
                self._find(ref)
                return _json({"processes": [process.model_dump(mode="json") for process in self.processes.values()]})
            case "GET", ["vms", _, "processes", process_id]:
                return _json(self._process(process_id).model_dump(mode="json"))
            case "GET", ["vms", _, "processes", process_id, "output"]:
                self._process(process_id)
                return httpx.Response(200, stream=_Stream(self._run()))
            case "DELETE", ["vms", _, "processes", process_id]:
                del self.processes[self._process(process_id).id]
                return httpx.Response(204)
            case "POST", ["vms", _, "processes", process_id, "signal"]:
                if process_id != "p1":
                    self._process(process_id)
                self.signalled.set()
                return httpx.Response(204)
            case "GET" | "PATCH", ["vms", ref, "env"]:
                self._find(ref)
                self.env |= (body or {}).get("set", {})
                for name in (body or {}).get("unset", []):
                    self.env.pop(name, None)
                return _json({"env": self.env})
            case "GET" | "POST", ["vms", ref, *_]:
                return _vm(self._find(ref))
            case "DELETE", ["vms", ref]:
                del self.vms[self._find(ref).vm_id]
                return httpx.Response(204)
        raise NotFound(f"no such route: {method} {path}")

    def _find(self, ref: str) -> VMInfo:
        for vm in self.vms.values():
            if ref in (vm.vm_id, vm.name):
                return vm
        raise NotFound(f"no VM has the ID or name {ref!r}", hint="squib ls shows all VMs")

    def _process(self, process_id: str) -> ProcessInfo:
        if process_id not in self.processes:
            raise NoSuchProcess(f"no process {process_id}", hint="squib ps VM shows all")
        return self.processes[process_id]

    async def _run(self) -> AsyncIterator[bytes]:
        try:
            yield encode_json(FrameKind.STARTED, {"id": "p1", "pid": 312})
            async for frame in self.script(self):
                yield frame
        except (GeneratorExit, asyncio.CancelledError):
            self.killed = True
            raise

    async def _log(self) -> AsyncIterator[bytes]:
        for chunk in self.logs:
            yield chunk

    async def _take_stdin(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        async for chunk in request.stream:
            self.stdin += chunk
        self.stdin_closed.set()
        return _json({"written": len(self.stdin)})


class _Transport(httpx.AsyncBaseTransport):
    def __init__(self, api: FakeAPI) -> None:
        self._api = api

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._api.answer(request)


class _Stream(httpx.AsyncByteStream):
    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            yield chunk

    async def aclose(self) -> None:
        await self._chunks.aclose()  # type: ignore[attr-defined]


def _json(value: object) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.Response(200, content=json.dumps(value), headers=headers)  # in ASCII: strings may hold any bytes


def _vm(vm: VMInfo) -> httpx.Response:
    return _json(vm.model_dump(mode="json"))


def _lines(*events: object) -> httpx.Response:
    return httpx.Response(200, content="".join(json.dumps(event) + "\n" for event in events))


def _image(name: str) -> dict[str, object]:
    return {"name": name, "digest": DIGEST, "size_bytes": 111755264, "built_at": NOW.isoformat(), "in_use_by": ["web"]}


_KERNEL = {"version": "6.12.1-cloud", "digest": DIGEST, "size_bytes": 70 << 20, "built_at": NOW.isoformat()}
