"""Send a caller's data to the engine as the body of a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from squib.sdk.httpclient import HTTPClient


async def send(engine: HTTPClient, method: str, path: str, chunks: AsyncGenerator[bytes, None]) -> bytes:
    """Send ``chunks`` as a request's body; return the response's body.

    Raises what ``chunks`` raises, and the errors of `HTTPClient.stream`.
    """
    content = _Content(chunks)
    try:
        async with aclosing(chunks), engine.stream(method, path, content) as response:
            return await response.aread()
    except _ContentError:
        assert content.error
        raise content.error from None


class _ContentError(Exception):
    """The caller's content has raised an exception."""


class _Content:
    """The content of an upload.

    If it raises, it ends with a `_ContentError`, and ``error`` is what was raised.

    The caller's exception must not pass through the libraries: they take a GeneratorExit for the end of their own
    generators.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None]) -> None:
        self._chunks = chunks
        self.error: BaseException | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                return
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # the caller's code may raise anything
                self.error = error
                raise _ContentError from error
            yield chunk
