"""Requests to an engine, local or remote: the one transport under SDK and command line."""

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
"""For what an engine answers at once; starting a VM or a build takes its time."""
_HOLD_AGAIN_S = 0.5
_HOLD_END_S = 0.5
PAUSES_S = (0.0, 0.05, 0.25)
"""Before a request is sent again: an engine that was killed still accepts connections for a moment, and drops them."""
_REPEATABLE = ("GET", "DELETE")
"""Requests that may be sent again when the engine was lost before it answered."""


class EngineClient:
    """An engine: by default that of the state directory (started if need be), or a remote one by ``url`` and ``token``.

    ``url`` defaults to ``$SQUIB_URL`` and ``token`` to ``$SQUIB_TOKEN``; with neither, the engine is local. Belongs
    to one event loop. `close` it, or use it as an async context manager. Raises `InvalidArgument` for a URL or token
    that cannot be one.
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
        """The state directory of a local engine; ``None`` for one that is reached by URL."""
        return self._home

    @property
    def url(self) -> str | None:
        """The address of an engine that is reached by URL; ``None`` for the one of a state directory."""
        return self._url

    @property
    def headers(self) -> dict[str, str]:
        """What every request needs to be let in; holds the token."""
        return {"authorization": f"Bearer {self._token}"} if self._url and self._token else {}

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for clients of the same engine with the same rights."""
        return (self._url or "", self._token or "", str(self._home and self._home.root))

    async def close(self) -> None:
        """Give up the connections; the engine and its VMs go on. Idempotent."""
        if self._http:
            await self._http.aclose()
            self._http = None

    async def request(self, method: str, path: str, body: object | None = None) -> Any:
        """Send a request with a JSON body and return the JSON of the answer (``None`` if it is empty).

        Raises the `SquibError` that the engine reports; `EngineUnavailable`, `EngineStartFailed`.
        """
        content = None if body is None else json.dumps(body).encode()
        timeout_s = _ANSWER_TIMEOUT_S if method == "GET" else None
        async with self.stream(method, path, content, timeout_s=timeout_s) as response:
            answer = await response.aread()
        try:
            return json.loads(answer) if answer else None
        except ValueError:
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
        """Send a request; the block reads the response as it comes.

        Raises as `request`; `EngineUnavailable` too if nothing comes for ``timeout_s``.
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
                f"the engine {self._where} did not answer within {timeout_s:g} s",
                hint="is it suspended, or its host overloaded? squib version shows its pid",
            ) from error
        except httpx.TransportError as error:
            raise EngineUnavailable(
                f"the connection to the engine {self._where} broke: {error or type(error).__name__}",
                hint="squib logs --engine shows what it did",
            ) from error

    async def _send(self, http: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
        for pause_s in PAUSES_S:
            try:
                return await http.send(request, stream=True)
            except httpx.TransportError as error:
                lost_before_an_answer = request.method in _REPEATABLE and not isinstance(error, httpx.ReadTimeout)
                if not isinstance(error, httpx.ConnectError) and not lost_before_an_answer:
                    raise
                if self._home is None:
                    raise EngineUnavailable(
                        f"no engine answers at {self._url}: {error}",
                        hint="is squib serve running there? check SQUIB_URL",
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
                # No TLS on a unix socket; reading the certificates of all authorities would take 20 ms.
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
        """What the engine is."""
        return read_value(EngineInfo, await self.request("GET", "/engine"))

    async def doctor(self) -> list[Check]:
        """What the engine finds when it looks at its host and its state directory."""
        return read_list(Check, await self.request("GET", "/doctor"), "checks")

    async def vms(self, *, project: str | None = None) -> list[VMInfo]:
        """All VMs, or those of one project; oldest first."""
        query = f"?project={check_ref(project)}" if project is not None else ""
        return read_list(VMInfo, await self.request("GET", f"/vms{query}"), "vms")

    async def vm(self, ref: str) -> VMInfo:
        """The VM with this ID or name. Raises `NotFound`."""
        return read_value(VMInfo, await self.request("GET", _vm_path(ref)))

    async def create_vm(
        self, config: VMConfig, *, bound: bool = False, on_progress: OnProgress | None = None
    ) -> VMInfo:
        """Register a VM. The engine deletes a ``bound`` one unless it is held (`holding`) within 10 s.

        ``on_progress`` is called with the steps of building its kernel and image. Raises `NameTaken`, `DiskFull` and
        as `build_image`.
        """
        body = {"config": config.model_dump(exclude_unset=True), "start": False} | ({"bound": True} if bound else {})
        return await self._create(body, on_progress)

    async def launch_vm(
        self, config: VMConfig, *, boot_timeout_s: float, on_progress: OnProgress | None = None
    ) -> VMInfo:
        """Create a VM and boot it. If the boot fails, the VM is removed. Raises as `create_vm` and `start_vm`."""
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
        """Stop a VM, by force after ``timeout_s``. Raises `NotFound`."""
        return read_value(VMInfo, await self.request("POST", f"{_vm_path(ref)}/stop", {"timeout_s": timeout_s}))

    async def pause_vm(self, ref: str) -> VMInfo:
        """Halt a VM's processors. Raises `WrongState`, `NotFound`."""
        return VMInfo.model_validate(await self.request("POST", f"{_vm_path(ref)}/pause"))

    async def resume_vm(self, ref: str) -> VMInfo:
        """Let a paused VM go on. Raises `WrongState`, `NotFound`."""
        return VMInfo.model_validate(await self.request("POST", f"{_vm_path(ref)}/resume"))

    async def delete_vm(self, ref: str) -> None:
        """Delete a VM. Raises `NotFound`."""
        await self.request("DELETE", _vm_path(ref))

    @asynccontextmanager
    async def holding(self, ref: str) -> AsyncIterator[None]:
        """While the block runs, the VM lives only as long as this process: if that is gone, the engine deletes it.

        Whoever wants to keep the VM does not hold it: at the end of the block it should be deleted.
        """
        holder = asyncio.create_task(self._hold(ref), name=f"hold {ref}")
        try:
            yield
        finally:
            await asyncio.wait({holder}, timeout=_HOLD_END_S)  # the VM's deletion ends it
            holder.cancel()
            await asyncio.wait({holder})

    async def _hold(self, ref: str) -> None:
        while True:
            with suppress(EngineUnavailable):
                with suppress(NotFound, EngineStartFailed):
                    await self.request("POST", f"{_vm_path(ref)}/hold")
                return
            await asyncio.sleep(_HOLD_AGAIN_S)

    async def vm_logs(self, ref: str, *, lines: int | None = None, follow: bool = False) -> AsyncIterator[bytes]:
        """What the guest wrote to its console: the last ``lines`` of it and, with ``follow``, what comes until it ends.

        Raises `NotFound`.
        """
        async for chunk in self._chunks(f"{_vm_path(ref)}/logs", lines=lines, follow=follow):
            yield chunk

    async def engine_logs(self, *, lines: int | None = None, follow: bool = False) -> AsyncIterator[bytes]:
        """The engine's own log, as `vm_logs`."""
        async for chunk in self._chunks("/engine/logs", lines=lines, follow=follow):
            yield chunk

    async def _chunks(self, path: str, *, lines: int | None, follow: bool) -> AsyncIterator[bytes]:
        query = urlencode({"follow": str(follow).lower()} | ({} if lines is None else {"lines": str(lines)}))
        async with self.stream("GET", f"{path}?{query}") as response:
            async for chunk in response.aiter_raw():
                yield chunk

    async def images(self) -> list[ImageInfo]:
        """The images in the engine's cache."""
        return read_list(ImageInfo, await self.request("GET", "/images"), "images")

    async def kernels(self) -> list[KernelInfo]:
        """The kernels in the engine's cache."""
        return read_list(KernelInfo, await self.request("GET", "/kernels"), "kernels")

    async def build_image(
        self, name: str, *, rebuild: bool = False, on_progress: OnProgress = lambda _: None
    ) -> ImageInfo:
        """Build a runtime's image unless it is there. Raises `NotFound`, `ToolFailed`, `DependencyMissing`,
        `DiskFull`.
        """
        result = await self._with_progress("/images", {"name": name, "rebuild": rebuild}, on_progress, "image")
        return read_value(ImageInfo, result["image"])

    async def build_kernel(self, *, rebuild: bool = False, on_progress: OnProgress = lambda _: None) -> KernelInfo:
        """Fetch the kernel unless it is there. Raises as `build_image`."""
        result = await self._with_progress("/kernels", {"rebuild": rebuild}, on_progress, "kernel")
        return read_value(KernelInfo, result["kernel"])

    async def remove_image(self, name: str) -> None:
        """Remove an image from the cache. Raises `NotFound`, `Conflict` if a VM uses it."""
        await self.request("DELETE", f"/images/{check_ref(name)}")

    async def remove_kernel(self, ref: str) -> None:
        """Remove a kernel from the cache by its version or digest. Raises `NotFound`, `Conflict` if a VM uses it."""
        try:
            check_kernel_ref(ref)
        except ValueError as error:
            raise InvalidArgument(str(error)) from None
        await self.request("DELETE", f"/kernels/{quote(ref, safe='')}")

    async def _with_progress(
        self, path: str, body: dict[str, Any], on_progress: OnProgress, result: str
    ) -> dict[str, Any]:
        """Send a request whose response streams its progress; return the event that has ``result``.

        Events that this client does not know are ignored. An engine that cannot stream responds with the result alone.
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
        raise EngineUnavailable(f"the engine ended before it had the {result}", hint="repeat the command")


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host or not 0 < (parsed.port or 80) < 1 << 16:
        raise InvalidArgument(
            f"{url!r} is not the URL of an engine", hint="it is like http://127.0.0.1:8765; check SQUIB_URL"
        )
    return url


def _checked_token(token: str) -> str:
    token = token.strip()
    if not token.isascii() or not token.isprintable():
        raise InvalidArgument("the token holds characters that no token has", hint="check SQUIB_TOKEN")
    return token


def read_value(model: type[M], answer: object) -> M:
    """A value in an engine's answer. Raises `EngineUnavailable` if it is none."""
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        raise _not_understood(model.__name__) from error


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise _not_understood("a step of a build")
    return event


def read_list(model: type[M], answer: object, name: str) -> list[M]:
    """The values that an answer has under ``name``. Raises as `read_value`."""
    values = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(values, list):
        raise _not_understood(name)
    return [read_value(model, value) for value in values]


def _not_understood(what: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"the answer cannot be read ({what}): the engine is of another version, or it is not a squib engine",
        hint="squib version shows both versions; check SQUIB_URL",
    )


def _vm_path(ref: str) -> str:
    return f"/vms/{check_ref(ref)}"


def error_of(status: int, body: bytes) -> SquibError:
    """The error in an answer with ``status``; one that says it is no engine if there is none."""
    try:
        return from_wire(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return EngineUnavailable(f"what answered with status {status} is not a squib engine", hint="check SQUIB_URL")
