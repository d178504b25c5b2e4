"""The API server: HTTP/1.1 on a unix socket, one request at a time, as Firecracker's."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
from collections.abc import Callable
from typing import Any

from tests.fakes.firecracker.machine import Machine, Refused
from tests.fakes.firecracker.process import Context, host_path
from tests.fakes.firecracker.schema import Invalid, check
from tests.fakes.firecracker.settings import APPEND, Fault, die

_MAX_CONNECTIONS = 10
_MAX_HEAD = 8192
_HEAD = "Server: Firecracker API\r\nConnection: keep-alive\r\n"
_REASONS = {200: "OK", 204: "No Content", 400: "Bad Request", 503: "Service Unavailable"}


class _Connection:
    def __init__(self, link: socket.socket) -> None:
        self.link, self.buffer = link, b""


class Server:
    """Serves requests until the guest ends."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._status: int | None = None
        self._wake_reader, self._wake_writer = socket.socketpair()
        self.machine = Machine(context, self._guest_ended)
        self._selector = selectors.DefaultSelector()
        self._connections: set[_Connection] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)

    def bind(self) -> None:
        """Listen on the API socket; raise `OSError`."""
        self._listener.bind(host_path(self._context.options.api_socket))
        self._listener.listen(128)

    def _guest_ended(self, status: int) -> None:
        self._status = status
        self._wake_writer.send(b"x")

    def run(self) -> int:
        """Serve until the guest ends; return the exit status."""
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, lambda: None)
        while self._status is None:
            for key, _ in self._selector.select():
                act: Callable[[], None] = key.data
                act()
        return self._status

    def _accept(self) -> None:
        connection = _Connection(self._listener.accept()[0])
        if len(self._connections) >= _MAX_CONNECTIONS:
            connection.link.sendall(_response(503, {"error": "Too many open connections"}))
            connection.link.close()
            return
        self._connections.add(connection)
        self._selector.register(connection.link, selectors.EVENT_READ, lambda: self._receive(connection))

    def _close(self, connection: _Connection) -> None:
        self._selector.unregister(connection.link)
        self._connections.remove(connection)
        connection.link.close()

    def _receive(self, connection: _Connection) -> None:
        """Read from a connection, and serve the requests that are there."""
        try:
            data = connection.link.recv(1 << 16)
            connection.buffer += data
            while data and (request := self._next(connection)):
                answer = self._serve(*request)
                if answer is None:
                    data = b""
                else:
                    connection.link.sendall(answer)
        except (ConnectionError, Invalid) as error:
            if isinstance(error, Invalid):
                connection.link.sendall(_response(400, {"error": str(error)}))
            data = b""
        if not data:
            self._close(connection)

    def _next(self, connection: _Connection) -> tuple[str, str, bytes] | None:
        """Take one request out of the buffer; return ``None`` if it is not complete, raise `Invalid` if it is none."""
        head, end, rest = connection.buffer.partition(b"\r\n\r\n")
        if not end:
            if len(head) > _MAX_HEAD:
                raise Invalid("Invalid request: the header section is too long.")
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1"):
            raise Invalid("Unsupported HTTP version.")
        if words[0] not in ("GET", "PUT", "PATCH", "DELETE"):
            raise Invalid("Unsupported HTTP method.")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "transfer-encoding" in headers:
            raise Invalid("Unsupported value. Key:Transfer-Encoding; Value:" + headers["transfer-encoding"])
        size = headers.get("content-length", "0")
        if not size.isdigit():
            raise Invalid(f"Invalid value. Key:Content-Length; Value:{size}")
        limit = self._context.options.payload_limit
        if int(size) > limit:
            raise Invalid(
                f"Request payload with size {size} is larger than the limit of {limit} allowed by server.\n"
                "All previous unanswered requests will be dropped."
            )
        if len(rest) < int(size):
            return None
        connection.buffer = rest[int(size) :]
        path = words[1].removeprefix("http://localhost")
        return words[0], path, rest[: int(size)]

    def _serve(self, method: str, path: str, body: bytes) -> bytes | None:
        """Return the answer to one request, or ``None`` to close the connection without one."""
        log = self._context.log
        self._record(method, path, body)
        described = f" with body {json.dumps(body.decode(errors='replace'))}" if body else ""
        log.write(f'The API server received a {method.title()} request on "{path}"{described}.', thread="fc_api")
        names = [f"{method} {path}"]
        status, answer = 204, None
        try:
            operation, values = check(method, path, body, self._context.release)
            detail = values.get("action_type") or values.get("state")
            names += [f"{names[0]} {detail}"] if detail else []
            if fault := self._context.settings.fault("before", *names):
                return _obey(fault)
            answer = self.machine.perform(operation, values)
            status = 204 if answer is None else 200
        except (Invalid, Refused) as error:
            status, answer = 400, {"fault_message": str(error)}
            log.write(f"Received Error. Status code: 400 Bad Request. Message: {error}", "error", "fc_api")
        else:
            done = f"The request was executed successfully. Status code: {status} {_REASONS[status]}."
            log.write(done, thread="fc_api")
        if fault := self._context.settings.fault("after", *names):
            return _obey(fault)
        return _response(status, answer)

    def _record(self, method: str, path: str, body: bytes) -> None:
        if not self._context.settings.values["record"]:
            return
        try:
            value = json.loads(body) if body else None
        except ValueError:
            value = body.decode(errors="replace")
        line = json.dumps({"method": method, "path": path, "body": value}) + "\n"
        fd = self._context.settings.record_fd
        if fd is None:
            fd = os.open(host_path(self._context.options.api_socket) + ".requests.jsonl", APPEND, 0o644)
            self._context.settings.record_fd = fd
        os.write(fd, line.encode())


def _obey(fault: Fault) -> bytes | None:
    """Misbehave at a request."""
    if fault.do == "die":
        die(fault)
    while fault.do == "hang":
        signal.pause()
    return _response(fault.status or 400, {"fault_message": fault.message}) if fault.do == "answer" else None


def _response(status: int, body: Any) -> bytes:
    head = f"HTTP/1.1 {status} \r\n{_HEAD}"
    if body is None:
        return f"{head}\r\n".encode()
    text = json.dumps(body, separators=(",", ":")).encode()
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text
