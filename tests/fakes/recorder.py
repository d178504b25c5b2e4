"""An ASGI app that notes the requests to the one that it wraps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass
class Call:
    """A request, such as ``POST /vms/web/exec``, and its JSON body."""

    what: str
    body: Any = None


@dataclass
class Recorder:
    """Passes requests on to ``app``. ``before_answer`` is called with each request before its answer is sent."""

    app: ASGIApp
    calls: list[Call] = field(default_factory=list)
    before_answer: Callable[[str], None] = lambda what: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["raw_path"].decode().partition("?")[0].removeprefix("/v1")
        query = scope["query_string"].decode()
        call = Call(f"{scope['method']} {path}" + (f"?{query}" if query else ""))
        self.calls.append(call)
        body = bytearray()

        async def note_body() -> Message:
            message = await receive()
            if dict(scope["headers"]).get(b"content-type") == b"application/json":
                body.extend(message.get("body", b""))
                if body and message["type"] == "http.request" and not message.get("more_body"):
                    call.body = json.loads(body)
            return message

        async def note_answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.before_answer(call.what)
            await send(message)

        await self.app(scope, note_body, note_answer)

    @property
    def made(self) -> list[str]:
        """The requests, in order, without those that hold a VM, which run beside the others."""
        return [call.what for call in self.calls if not call.what.endswith("/hold")]

    @property
    def held(self) -> list[str]:
        """The requests that hold a VM."""
        return [call.what for call in self.calls if call.what.endswith("/hold")]

    def body(self, what: str) -> Any:
        """Return the body of the one request ``what``."""
        (call,) = [call for call in self.calls if call.what == what]
        return call.body
