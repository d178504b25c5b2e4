"""A client of Firecracker's API.

Every request has a timeout, and every response a size limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable

import h11

from squib.drivers.firecracker.requests import Request
from squib.errors import ToolFailed
from squib.protocol.text import printable
from squib.undo import Undo

TIMEOUT_S = 10.0
_READ_BYTES = 1 << 16
_MAX_ANSWER_BYTES = 1 << 20
_FAULT_CHARS = 1000
_HEADERS = (("Host", "localhost"), ("Accept", "application/json"), ("Content-Type", "application/json"))

Connect = Callable[[], socket.socket]
"""Connects to the API's socket: returns a non-blocking socket. Raises `OSError`."""


class ApiClient:
    """The requests to one Firecracker, one at a time, over one connection.

    After a failure the next request makes a new connection.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._socket: socket.socket | None = None
        self._http = h11.Connection(h11.CLIENT)
        self._turn = asyncio.Lock()

    async def request(self, request: Request, *, timeout_s: float | None = None) -> object:
        """Send a request and return the body of the answer; ``None`` if it is empty.

        ``timeout_s`` is by default `TIMEOUT_S`. Raises `ToolFailed` if Firecracker refuses the request, ends, or does
        not answer in time.
        """
        what = f"{request.method} {request.path}"
        timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
        async with self._turn:
            try:
                # After a failure, also a cancellation, what comes next on the connection belongs to this request.
                with Undo(self.close):
                    async with asyncio.timeout(timeout_s):
                        status, body = await self._exchange(request)
            except TimeoutError:
                raise ToolFailed(f"Firecracker did not respond to {what} within {timeout_s:g} s") from None
            except (OSError, h11.RemoteProtocolError) as error:
                raise ToolFailed(f"Firecracker failed at {what}: {_reason(error)}") from error
        answer = _decode(body)
        if status >= 300:
            raise ToolFailed(f"Firecracker refused {what} (status {status}): {_fault(answer)}")
        return answer

    def close(self) -> None:
        """Close the connection. Firecracker keeps running. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _exchange(self, request: Request) -> tuple[int, bytes]:
        if self._socket is None:
            self._socket = self._connect()
            self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_READ_BYTES)
        elif self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        body = b"" if request.method == "GET" else json.dumps(request.body).encode()
        headers = [*_HEADERS, ("Content-Length", str(len(body)))]
        events = [h11.Request(method=request.method, target=request.path, headers=headers), h11.EndOfMessage()]
        if body:
            events.insert(1, h11.Data(data=body))
        data = b"".join(self._http.send(event) or b"" for event in events)
        await asyncio.get_running_loop().sock_sendall(self._socket, data)
        answer = await self._receive(self._socket)
        if self._http.their_state is not h11.DONE or self._http.our_state is not h11.DONE:
            self.close()  # it closes the connection after this answer
        return answer

    async def _receive(self, connection: socket.socket) -> tuple[int, bytes]:
        status, body, received_bytes = 0, bytearray(), 0
        while True:
            # `sock_recv` does not wait while there are bytes, and no timeout would end this.
            await asyncio.sleep(0)
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                received = await asyncio.get_running_loop().sock_recv(connection, _READ_BYTES)
                if not received:
                    raise ConnectionResetError("it closed the connection")
                received_bytes += len(received)
                if received_bytes > _MAX_ANSWER_BYTES:
                    raise h11.RemoteProtocolError("the answer is too long")
                self._http.receive_data(received)
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(body)


def _reason(error: OSError | h11.RemoteProtocolError) -> str:
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return printable(text)


def _decode(body: bytes) -> object:
    if not body:
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(body)
    return body.decode(errors="replace")


def _fault(answer: object) -> str:
    message = answer.get("fault_message") if isinstance(answer, dict) else answer
    return printable(str(message)[:_FAULT_CHARS])
