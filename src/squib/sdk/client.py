"""The client for an engine, local or remote.

The SDK and the command line use it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal
from urllib.parse import quote, urlencode

from squib.errors import EngineStartFailed, EngineUnavailable, InvalidArgument, NotFound, SquibError
from squib.models import (
    Check,
    DriverChoice,
    EngineInfo,
    ForkResult,
    ImageInfo,
    KernelInfo,
    OnProgress,
    Progress,
    SnapshotInfo,
    TemplateInfo,
    TreeNode,
    VMConfig,
    VMDetails,
    VMInfo,
)
from squib.models.assets import check_kernel_ref
from squib.protocol.errors import from_wire
from squib.sdk.config import check_ref
from squib.sdk.httpclient import HTTPClient
from squib.sdk.local import engine_answers
from squib.sdk.responses import read_event, read_list, read_value

Persistence = Literal["ephemeral", "persistent"]

_HOLD_AGAIN_S = 0.5
_HOLD_END_S = 0.5
_ENGINE_POLL_S = 0.1
_REPLACEMENT_S = 10.0


class EngineClient(HTTPClient):
    """A client for one engine, in one event loop.

    `close` it, or use it as an async context manager.

    With ``url`` (default ``$SQUIB_URL``) the engine is remote, and ``token`` defaults to ``$SQUIB_TOKEN``. Without a
    URL it is the local engine of ``home`` (default ``$SQUIB_HOME``), which is started if it is not running.

    Every request ends: if the engine does not respond, it fails with `EngineUnavailable` after about 20 s.

    Raises `InvalidArgument` for an invalid URL or token.
    """

    async def info(self) -> EngineInfo:
        """Return the engine's version and settings."""
        return read_value(EngineInfo, await self.request("GET", "/engine"))

    async def doctor(self) -> list[Check]:
        """Run the engine's checks of its host and state directory."""
        return read_list(Check, await self.request("GET", "/doctor"), "checks")

    async def vms(self, *, project: str | None = None) -> list[VMInfo]:
        """List all VMs, or the VMs of one project, oldest first."""
        query = f"?project={check_ref(project)}" if project is not None else ""
        return read_list(VMInfo, await self.request("GET", f"/vms{query}"), "vms")

    async def vm(self, ref: str) -> VMInfo:
        """Look up a VM by ID or name. Raises `NotFound`."""
        return read_value(VMInfo, await self.request("GET", _vm_path(ref)))

    async def vm_details(self, ref: str) -> VMDetails:
        """Look up a VM in all details. Raises `NotFound`."""
        return read_value(VMDetails, await self.request("GET", f"{_vm_path(ref)}/details"))

    async def choose_driver(self, config: VMConfig) -> DriverChoice:
        """Return the driver that a VM with this configuration would get.

        Raises `Unsupported` if it cannot get one, with the reason.
        """
        return read_value(DriverChoice, await self.request("POST", "/driver", config.model_dump(exclude_unset=True)))

    async def create_vm(
        self, config: VMConfig, *, bound: bool = False, on_progress: OnProgress | None = None
    ) -> VMInfo:
        """Register a VM without starting it.

        With ``bound``, the engine deletes the VM unless `bind_lifetime` is called within 10 s. ``on_progress`` gets
        each step of building the kernel and image.

        Raises `NameTaken`, `DiskFull`, and the errors of `build_image`.
        """
        body = {"config": config.model_dump(exclude_unset=True), "start": False} | ({"bound": True} if bound else {})
        return await self._create(body, on_progress)

    async def launch_vm(
        self, config: VMConfig, *, boot_timeout_s: float, on_progress: OnProgress | None = None
    ) -> VMInfo:
        """Create and boot a VM; remove it if the boot fails.

        Raises the errors of `create_vm` and `start_vm`.
        """
        body = {"config": config.model_dump(exclude_unset=True), "start": True, "boot_timeout_s": boot_timeout_s}
        return await self._create(body, on_progress)

    async def _create(self, body: dict[str, Any], on_progress: OnProgress | None) -> VMInfo:
        if on_progress is None:
            return read_value(VMInfo, await self.request("POST", "/vms", body))
        return read_value(VMInfo, (await self._with_progress("/vms", body, on_progress, "vm"))["vm"])

    async def start_vm(self, ref: str, *, boot_timeout_s: float, cold: bool = False) -> VMInfo:
        """Boot a VM, or let a suspended one go on; with ``cold``, discard its memory and boot from its disk.

        Raises `BootFailed`, `BootTimeout`, `WrongState`, `NotFound`, `Unsupported`.
        """
        body: dict[str, Any] = {"boot_timeout_s": boot_timeout_s} | ({"cold": True} if cold else {})
        return read_value(VMInfo, await self.request("POST", f"{_vm_path(ref)}/start", body))

    async def stop_vm(self, ref: str, *, timeout_s: float) -> VMInfo:
        """Stop a VM; kill it after ``timeout_s`` seconds.

        Raises `NotFound`.
        """
        return read_value(VMInfo, await self.request("POST", f"{_vm_path(ref)}/stop", {"timeout_s": timeout_s}))

    async def pause_vm(self, ref: str) -> VMInfo:
        """Pause a VM. Raises `WrongState`, `NotFound`."""
        return read_value(VMInfo, await self.request("POST", f"{_vm_path(ref)}/pause"))

    async def resume_vm(self, ref: str) -> VMInfo:
        """Resume a paused VM. Raises `WrongState`, `NotFound`."""
        return read_value(VMInfo, await self.request("POST", f"{_vm_path(ref)}/resume"))

    async def suspend_vm(self, ref: str) -> VMInfo:
        """Suspend a VM: its memory goes to the disk. Raises `WrongState`, `NotFound`, `Unsupported`, `DiskFull`."""
        return read_value(VMInfo, await self.request("POST", f"{_vm_path(ref)}/suspend"))

    async def fork_vm(
        self,
        ref: str,
        *,
        count: int = 1,
        name: str | None = None,
        persistence: Persistence = "ephemeral",
        boot_timeout_s: float = 30.0,
    ) -> list[VMInfo | SquibError]:
        """Make more VMs of one that runs; return a VM or an error for each.

        Raises `WrongState`, `NotFound`, `NameTaken`, `InvalidArgument`, `Unsupported`, `DiskFull`; then none was made.
        """
        body = {"count": count, "name": name, "persistence": persistence, "boot_timeout_s": boot_timeout_s}
        reply = await self.request("POST", f"{_vm_path(ref)}/fork", body)
        results = read_list(ForkResult, reply, "forks")
        return [result.vm or from_wire(result.error.model_dump() if result.error else None) for result in results]

    async def rollback_vm(self, ref: str, snapshot: str, *, boot_timeout_s: float = 30.0) -> VMInfo:
        """Take a VM back to a snapshot, in place, and start it.

        Raises `NotFound`, `InvalidArgument`, `Unsupported`, `DiskFull`, and the errors of `start_vm`.
        """
        body = {"snapshot": check_ref(snapshot), "boot_timeout_s": boot_timeout_s}
        return read_value(VMInfo, await self.request("POST", f"{_vm_path(ref)}/rollback", body))

    async def snapshots(self) -> list[SnapshotInfo]:
        """List the snapshots, oldest first."""
        return read_list(SnapshotInfo, await self.request("GET", "/snapshots"), "snapshots")

    async def snapshot(self, ref: str) -> SnapshotInfo:
        """Look up a snapshot by ID or name. Raises `NotFound`."""
        return read_value(SnapshotInfo, await self.request("GET", f"/snapshots/{check_ref(ref)}"))

    async def create_snapshot(
        self, ref: str, *, name: str | None = None, disk_only: bool = False, resume: bool = True
    ) -> SnapshotInfo:
        """Save a VM's memory and disk, or only its disk; without ``resume`` a VM that runs is paused afterwards.

        Raises `NotFound`, `NameTaken`, `WrongState`, `Unsupported`, `DiskFull`.
        """
        body = {"vm": check_ref(ref), "name": name, "disk_only": disk_only, "resume": resume}
        return read_value(SnapshotInfo, await self.request("POST", "/snapshots", body))

    async def delete_snapshot(self, ref: str) -> None:
        """Delete a snapshot. VMs that were made from it go on. Raises `NotFound`."""
        await self.request("DELETE", f"/snapshots/{check_ref(ref)}")

    async def tree(self) -> list[TreeNode]:
        """List all VMs and snapshots, each after what it was made from."""
        return read_list(TreeNode, await self.request("GET", "/tree"), "nodes")

    async def delete_vm(self, ref: str) -> None:
        """Delete a VM. Raises `NotFound`."""
        await self.request("DELETE", _vm_path(ref))

    @asynccontextmanager
    async def bind_lifetime(self, ref: str, *, if_bound: bool = False) -> AsyncIterator[asyncio.Task[None]]:
        """Bind a VM's lifetime to this process for the duration of the block.

        If the process exits, the engine deletes the VM. Delete the VM before the block ends; or call `release_vm`, and
        cancel the task that the block gets. With ``if_bound``, do nothing if the VM is not bound.
        """
        binding = asyncio.create_task(self._bind(ref, if_bound), name=f"bind {ref}")
        try:
            yield binding
        finally:
            try:
                await asyncio.wait({binding}, timeout=_HOLD_END_S)  # the request ends when the VM is deleted
            finally:  # also if this is cancelled: a request that goes on would use a client that is closed
                binding.cancel()
                await asyncio.wait({binding})

    async def _bind(self, ref: str, if_bound: bool) -> None:
        path = f"{_vm_path(ref)}/hold" + ("?if_bound=true" if if_bound else "")
        while True:
            try:
                # For ever: an engine that is only suspended would take another request for the client's end.
                await self.request("POST", path, timeout_s=None)
                return
            except (NotFound, EngineStartFailed):
                return
            except SquibError:
                await self._next_engine()  # an engine that the user has stopped may be about to get a successor
                await asyncio.sleep(_HOLD_AGAIN_S)

    async def release_vm(self, ref: str) -> None:
        """Make a bound VM independent of the clients that hold it.

        Raises `NotFound`, `DiskFull`.
        """
        await self.request("DELETE", f"{_vm_path(ref)}/hold")

    async def listen(
        self, host: str, port: int, *, token: str = "", allowed_hosts: Sequence[str] = ()
    ) -> AsyncGenerator[tuple[str, str], None]:
        """Make the engine serve its API on TCP until the generator is closed.

        Yields the URL and the token, and again if another engine has taken over. The engine must be local.

        Raises `InvalidArgument` if the address cannot be used, `EngineUnavailable` when the engine has ended, and
        `Unsupported` if this client is connected over TCP.
        """
        body: dict[str, Any] = {"host": host, "port": port, "token": token, "allowed_hosts": list(allowed_hosts)}
        opened = False
        while True:
            with suppress(*((EngineUnavailable,) if opened else ())):
                async with self.stream("POST", "/listeners", json.dumps(body).encode(), timeout_s=None) as response:
                    async for line in response.aiter_lines():
                        info, opened = read_event(line), True
                        url, body["token"] = str(info.get("url")), str(info.get("token"))
                        body["port"] = int(url.rpartition(":")[2])
                        yield url, body["token"]
            if not await self._next_engine():
                raise EngineUnavailable(f"the engine {self.where} has ended", hint="squib logs --engine shows its log")

    async def _next_engine(self) -> bool:
        """Wait until a new local engine replaces the lost one, at most 10 s; return whether one does.

        This client does not start it.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_REPLACEMENT_S):
                while self._home:
                    if engine_answers(self._home):
                        return True
                    await asyncio.sleep(_ENGINE_POLL_S)
        return False

    async def vm_logs(self, ref: str, *, lines: int | None = None, follow: bool = False) -> AsyncIterator[bytes]:
        """Yield the last ``lines`` (default: all) of a VM's console log.

        With ``follow``, also yield new output until the VM stops.

        Raises `NotFound`.
        """
        async for chunk in self._chunks(f"{_vm_path(ref)}/logs", lines=lines, follow=follow):
            yield chunk

    async def engine_logs(self, *, lines: int | None = None, follow: bool = False) -> AsyncIterator[bytes]:
        """Yield the engine's log in chunks; parameters as in `vm_logs`."""
        async for chunk in self._chunks("/engine/logs", lines=lines, follow=follow):
            yield chunk

    async def _chunks(self, path: str, *, lines: int | None, follow: bool) -> AsyncIterator[bytes]:
        query = urlencode({"follow": str(follow).lower()} | ({} if lines is None else {"lines": str(lines)}))
        async with self.stream("GET", f"{path}?{query}") as response:
            async for chunk in response.aiter_raw():
                yield chunk

    async def images(self) -> list[ImageInfo]:
        """List the images in the engine's cache."""
        return read_list(ImageInfo, await self.request("GET", "/images"), "images")

    async def kernels(self) -> list[KernelInfo]:
        """List the kernels in the engine's cache."""
        return read_list(KernelInfo, await self.request("GET", "/kernels"), "kernels")

    async def build_image(
        self, name: str, *, rebuild: bool = False, on_progress: OnProgress = lambda _: None
    ) -> ImageInfo:
        """Build a runtime's image if ``rebuild`` is set or it is not cached.

        With ``rebuild``, build it always.

        Raises `NotFound`, `ToolFailed`, `DependencyMissing`, `DiskFull`.
        """
        result = await self._with_progress("/images", {"name": name, "rebuild": rebuild}, on_progress, "image")
        return read_value(ImageInfo, result["image"])

    async def build_kernel(self, *, rebuild: bool = False, on_progress: OnProgress = lambda _: None) -> KernelInfo:
        """Download the kernel if it is not cached.

        Raises the errors of `build_image`.
        """
        result = await self._with_progress("/kernels", {"rebuild": rebuild}, on_progress, "kernel")
        return read_value(KernelInfo, result["kernel"])

    async def remove_image(self, name: str) -> None:
        """Remove a cached image.

        Raises `NotFound`, and `Conflict` if a VM uses it.
        """
        await self.request("DELETE", f"/images/{check_ref(name)}")

    async def remove_kernel(self, ref: str) -> None:
        """Remove a kernel, by version or digest.

        Raises `Conflict` if a VM uses it, `NotFound`.
        """
        try:
            check_kernel_ref(ref)
        except ValueError as error:
            raise InvalidArgument(str(error)) from None
        await self.request("DELETE", f"/kernels/{quote(ref, safe='')}")

    async def templates(self) -> list[TemplateInfo]:
        """List the templates, the one used last first."""
        return read_list(TemplateInfo, await self.request("GET", "/templates"), "templates")

    async def build_template(
        self, config: VMConfig, *, boot_timeout_s: float, on_progress: OnProgress = lambda _: None
    ) -> TemplateInfo:
        """Make the template of a configuration, unless there is one.

        Raises `Unsupported` if its driver cannot save VMs, and the errors of `launch_vm`.
        """
        body = {"config": config.model_dump(exclude_unset=True), "boot_timeout_s": boot_timeout_s}
        result = await self._with_progress("/templates", body, on_progress, "template")
        return read_value(TemplateInfo, result["template"])

    async def remove_template(self, template_id: str) -> None:
        """Remove a template. VMs that were cloned from it go on. Raises `NotFound`."""
        await self.request("DELETE", f"/templates/{check_ref(template_id)}")

    async def prune_templates(self, *, everything: bool = False) -> list[str]:
        """Remove templates that are old or take much space, or all; return their IDs."""
        reply = await self.request("POST", "/templates/prune", {"all": everything})
        removed = reply.get("removed") if isinstance(reply, dict) else None
        return [str(template_id) for template_id in removed or []]

    async def _with_progress(
        self, path: str, body: dict[str, Any], on_progress: OnProgress, result: str
    ) -> dict[str, Any]:
        """Send a request, report progress, and return the ``result`` event.

        Unknown events are ignored. An engine that cannot stream responds with the result only.
        """
        async with self.stream("POST", path, json.dumps(body).encode(), accept="application/x-ndjson") as response:
            if response.headers.get("content-type") == "application/json":
                return {result: read_event((await response.aread()).decode())}
            async for line in response.aiter_lines():
                event = read_event(line)
                if progress := event.get("progress"):
                    on_progress(read_value(Progress, progress))
                elif error := event.get("error"):
                    raise from_wire(error)
                elif event.get(result) is not None:
                    return event
        raise EngineUnavailable(f"the engine exited before it returned the {result}", hint="retry the command")


def _vm_path(ref: str) -> str:
    return f"/vms/{check_ref(ref)}"
