"""The HTTP client for an engine, local or remote. The SDK and the command line use it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import httpx
from pydantic import ValidationError

from squib.errors import EngineStartFailed, EngineUnavailable, InvalidArgument, NotFound, SquibError, from_wire
from squib.models import Check, EngineInfo, ImageInfo, KernelInfo, OnProgress, Progress, ResponseModel, VMConfig, VMInfo
from squib.models.assets import check_kernel_ref
from squib.paths import Home
from squib.sdk.config import check_ref
from squib.sdk.local import ensure_engine
from squib.sdk.transport import EngineTransport

M = TypeVar("M", bound=ResponseModel)

_BASE_URL = "http://squib"
_CONNECT_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 60.0
"""For GET requests. Others, such as booting a VM or building an image, have no limit."""
_HOLD_AGAIN_S = 0.5
_HOLD_END_S = 0.5
PAUSES_S = (0.0, 0.05, 0.25)
"""Delays before each retry: a killed engine still accepts connections for a moment, and drops them."""
_RETRYABLE_METHODS = ("GET", "DELETE")
"""Requests that are retried if the connection breaks before the response."""


class EngineClient:
    """A client for one engine, in one event loop. `close` it, or use it as an async context manager.

    With ``url`` (default ``$SQUIB_URL``) the engine is remote, and ``token`` defaults to ``$SQUIB_TOKEN``. Without a
    URL it is the local engine of ``home`` (default ``$SQUIB_HOME``), which is started if it is not running. Raises
    `InvalidArgument` for an invalid URL or token.
    """

    def __init__(self, *, url: str | None = None, token: str | None = None, home: Home | None = None) -> None:
        url = url or (None if home else os.environ.get("SQUIB_URL") or None)
        self._url = _checked_url(url) if url else None
        self._token = _checked_token(token or os.environ.get("SQUIB_TOKEN") or "") or None
        self._home = home or (None if self._url else Home.from_environment())
        self._http: httpx.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"EngineClient({self._url or self._home})"

    async def __aenter__(self) -> EngineClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def home(self) -> Home | None:
        """The local engine's state directory, or ``None`` for a remote engine."""
        return self._home

    @property
    def url(self) -> str | None:
        """The remote engine's URL, or ``None`` for a local engine."""
        return self._url

    @property
    def headers(self) -> dict[str, str]:
        """The authorization headers of every request. They contain the token."""
        return {"authorization": f"Bearer {self._token}"} if self._url and self._token else {}

    @property
    def key(self) -> tuple[str, ...]:
        """A key that is equal for clients with the same engine and token."""
        return (self._url or "", self._token or "", str(self._home and self._home.root))

    async def close(self) -> None:
        """Close the connections. The engine and its VMs keep running. Idempotent."""
        if self._http:
            await self._http.aclose()
            self._http = None

    async def request(self, method: str, path: str, body: object | None = None) -> Any:
        """Send ``body`` as JSON and return the parsed response, ``None`` if it is empty.

        A GET request times out after 60 s. Raises the engine's `SquibError`, `EngineUnavailable`, `EngineStartFailed`.
        """
        content = None if body is None else json.dumps(body).encode()
        timeout_s = _ANSWER_TIMEOUT_S if method == "GET" else None
        async with self.stream(method, path, content, timeout_s=timeout_s) as response:
            answer = await response.aread()
        try:
            return json.loads(answer) if answer else None
        except (ValueError, RecursionError):
            raise _not_understood(self._where) from None

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        content: bytes | AsyncIterator[bytes] | None = None,
        *,
        timeout_s: float | None = None,
        accept: str = "*/*",
    ) -> AsyncIterator[httpx.Response]:
        """Send a request and stream its response. Raises the errors of `request`.

        Raises `EngineUnavailable` if no data arrives for ``timeout_s`` seconds (default: no limit).
        """
        headers = {"accept": accept} | ({"content-type": "application/json"} if isinstance(content, bytes) else {})
        http = self._client()
        timeout = httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S)
        request = http.build_request(method, f"/v1{path}", content=content, headers=headers, timeout=timeout)
        try:
            response = await self._send(http, request)
            try:
                if response.status_code >= 300:
                    raise error_of(response.status_code, await response.aread())
                yield response
            finally:
                await response.aclose()
        except httpx.ReadTimeout as error:
            raise EngineUnavailable(
                f"the engine {self._where} did not respond within {timeout_s:g} s",
                hint="it may be suspended, or its host overloaded; squib version shows its PID",
            ) from error
        except httpx.TransportError as error:
            raise EngineUnavailable(
                f"the connection to the engine {self._where} broke: {error or type(error).__name__}",
                hint="squib logs --engine shows the engine's log",
            ) from error

    async def _send(self, http: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
        for pause_s in PAUSES_S:
            try:
                return await http.send(request, stream=True)
            except httpx.TransportError as error:
                retryable = request.method in _RETRYABLE_METHODS and not isinstance(error, httpx.ReadTimeout)
                if not isinstance(error, httpx.ConnectError) and not retryable:
                    raise
                if self._home is None:
                    raise EngineUnavailable(
                        f"no engine answers at {self._url}: {error}",
                        hint="check SQUIB_URL, and that squib serve is running on that host",
                    ) from error
                await asyncio.sleep(pause_s)
                await ensure_engine(self._home)
        return await http.send(request, stream=True)

    @property
    def _where(self) -> str:
        return self._url or str(self._home and self._home.root)

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            timeout = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S)
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
            if self._home:
                # A Unix socket needs no TLS, and loading the CA certificates would take 20 ms.
                transport = EngineTransport(socket_path=self._home.engine_socket, limits=limits, tls=False)
                self._http = httpx.AsyncClient(base_url=_BASE_URL, transport=transport, timeout=timeout)
            else:
                transport = EngineTransport(socket_path=None, limits=limits, tls=str(self._url).startswith("https"))
                self._http = httpx.AsyncClient(
                    base_url=self._url or "",
                    headers=self.headers,
                    timeout=timeout,
                    transport=transport,
                    trust_env=False,
                )
        return self._http

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

    async def create_vm(
        self, config: VMConfig, *, bound: bool = False, on_progress: OnProgress | None = None
    ) -> VMInfo:
        """Register a VM without starting it.

        With ``bound``, the engine deletes the VM unless `bind_lifetime` is called within 10 s. ``on_progress`` gets
        each step of building the kernel and image. Raises `NameTaken`, `DiskFull`, and the errors of `build_image`.
        """
        body = {"config": config.model_dump(exclude_unset=True), "start": False} | ({"bound": True} if bound else {})
        return await self._create(body, on_progress)

    async def launch_vm(
        self, config: VMConfig, *, boot_timeout_s: float, on_progress: OnProgress | None = None
    ) -> VMInfo:
        """Create and boot a VM; remove it if the boot fails. Raises as `create_vm` and `start_vm`."""
        body = {"config": config.model_dump(exclude_unset=True), "start": True, "boot_timeout_s": boot_timeout_s}
        return await self._create(body, on_progress)

    async def _create(self, body: dict[str, Any], on_progress: OnProgress | None) -> VMInfo:
        if on_progress is None:
            return read_value(VMInfo, await self.request("POST", "/vms", body))
        return read_value(VMInfo, (await self._with_progress("/vms", body, on_progress, "vm"))["vm"])

    async def start_vm(self, ref: str, *, boot_timeout_s: float) -> VMInfo:
        """Boot a VM. Raises `BootFailed`, `BootTimeout`, `WrongState`, `NotFound`."""
        body = {"boot_timeout_s": boot_timeout_s}
        return read_value(VMInfo, await self.request("POST", f"{_vm_path(ref)}/start", body))

    async def stop_vm(self, ref: str, *, timeout_s: float) -> VMInfo:
        """Stop a VM; kill it after ``timeout_s`` seconds. Raises `NotFound`."""
        return read_value(VMInfo, await self.request("POST", f"{_vm_path(ref)}/stop", {"timeout_s": timeout_s}))

    async def pause_vm(self, ref: str) -> VMInfo:
        """Pause a VM. Raises `WrongState`, `NotFound`."""
        return read_value(VMInfo, await self.request("POST", f"{_vm_path(ref)}/pause"))

    async def resume_vm(self, ref: str) -> VMInfo:
        """Resume a paused VM. Raises `WrongState`, `NotFound`."""
        return read_value(VMInfo, await self.request("POST", f"{_vm_path(ref)}/resume"))

    async def delete_vm(self, ref: str) -> None:
        """Delete a VM. Raises `NotFound`."""
        await self.request("DELETE", _vm_path(ref))

    @asynccontextmanager
    async def bind_lifetime(self, ref: str) -> AsyncIterator[None]:
        """Bind a VM's lifetime to this process for the duration of the block.

        If the process exits, the engine deletes the VM. Delete the VM before the block ends.
        """
        binding = asyncio.create_task(self._bind(ref), name=f"bind {ref}")
        try:
            yield
        finally:
            await asyncio.wait({binding}, timeout=_HOLD_END_S)  # the request ends when the VM is deleted
            binding.cancel()
            await asyncio.wait({binding})

    async def _bind(self, ref: str) -> None:
        while True:
            with suppress(EngineUnavailable):
                with suppress(NotFound, EngineStartFailed):
                    await self.request("POST", f"{_vm_path(ref)}/hold")
                return
            await asyncio.sleep(_HOLD_AGAIN_S)

    async def vm_logs(self, ref: str, *, lines: int | None = None, follow: bool = False) -> AsyncIterator[bytes]:
        """Yield the last ``lines`` (default: all) of a VM's console log. Raises `NotFound`.

        With ``follow``, also yield new output until the VM stops.
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
        """Build a runtime's image if it is not cached, or always with ``rebuild``.

        Raises `NotFound`, `ToolFailed`, `DependencyMissing`, `DiskFull`.
        """
        result = await self._with_progress("/images", {"name": name, "rebuild": rebuild}, on_progress, "image")
        return read_value(ImageInfo, result["image"])

    async def build_kernel(self, *, rebuild: bool = False, on_progress: OnProgress = lambda _: None) -> KernelInfo:
        """Download the kernel if it is not cached. Raises the errors of `build_image`."""
        result = await self._with_progress("/kernels", {"rebuild": rebuild}, on_progress, "kernel")
        return read_value(KernelInfo, result["kernel"])

    async def remove_image(self, name: str) -> None:
        """Remove a cached image. Raises `NotFound`, and `Conflict` if a VM uses it."""
        await self.request("DELETE", f"/images/{check_ref(name)}")

    async def remove_kernel(self, ref: str) -> None:
        """Remove a kernel, by version or digest. Raises `Conflict` if a VM uses it, `NotFound`."""
        try:
            check_kernel_ref(ref)
        except ValueError as error:
            raise InvalidArgument(str(error)) from None
        await self.request("DELETE", f"/kernels/{quote(ref, safe='')}")

    async def _with_progress(
        self, path: str, body: dict[str, Any], on_progress: OnProgress, result: str
    ) -> dict[str, Any]:
        """Send a request, report its progress, and return the event with ``result``.

        Unknown events are ignored. An engine that cannot stream responds with the result only.
        """
        async with self.stream("POST", path, json.dumps(body).encode(), accept="application/x-ndjson") as response:
            if response.headers.get("content-type") == "application/json":
                return {result: _event((await response.aread()).decode())}
            async for line in response.aiter_lines():
                event = _event(line)
                if progress := event.get("progress"):
                    on_progress(read_value(Progress, progress))
                elif error := event.get("error"):
                    raise from_wire(error)
                elif event.get(result) is not None:
                    return event
        raise EngineUnavailable(f"the engine exited before it returned the {result}", hint="retry the command")


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host or not 0 < (parsed.port or 80) < 1 << 16:
        raise InvalidArgument(
            f"invalid engine URL {url!r}", hint="set SQUIB_URL to a URL such as http://127.0.0.1:8765"
        )
    return url


def _checked_token(token: str) -> str:
    token = token.strip()
    if not token.isascii() or not token.isprintable():
        raise InvalidArgument("the token contains invalid characters", hint="check SQUIB_TOKEN")
    return token


def read_value(model: type[M], answer: object) -> M:
    """Parse a value in a response. Raises `EngineUnavailable` if it is invalid."""
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        raise _not_understood(model.__name__) from error


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise _not_understood("progress event")
    return event


def read_list(model: type[M], answer: object, name: str) -> list[M]:
    """Parse the list under the key ``name``. Raises the errors of `read_value`."""
    values = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(values, list):
        raise _not_understood(name)
    return [read_value(model, value) for value in values]


def _not_understood(what: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"invalid response ({what}): the engine has another version, or the server is not a squib engine",
        hint="squib version shows both versions; check SQUIB_URL",
    )


def _vm_path(ref: str) -> str:
    return f"/vms/{check_ref(ref)}"


def error_of(status: int, body: bytes) -> SquibError:
    """Parse the error in a response; `EngineUnavailable` if there is none."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict) and isinstance(error := answer.get("error"), dict):
        return from_wire(error)
    return EngineUnavailable(f"not a squib engine: the server returned status {status}", hint="check SQUIB_URL")
