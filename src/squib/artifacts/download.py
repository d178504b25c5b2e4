"""Download a file whose digest is known."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import httpx

from squib.artifacts.building import no_progress
from squib.errors import DownloadFailed, InvalidArgument
from squib.host.files import disk_errors
from squib.models import OnProgress, Progress
from squib.undo import Undo
from squib.version import VERSION

STALL_TIMEOUT_S = 30.0


async def download(
    url: str,
    target: Path,
    *,
    sha256: str,
    max_bytes: int,
    on_progress: OnProgress = no_progress,
    stall_timeout_s: float = STALL_TIMEOUT_S,
) -> None:
    """Download ``url`` to ``target``, and check the hex digest ``sha256``.

    Redirects are followed, and ``$https_proxy`` is used. An error or a cancellation leaves no file. There is no limit
    of the whole time, only of the time without any data.

    Raises `DownloadFailed`, `DiskFull`, and `InvalidArgument` for an invalid URL.
    """
    if not re.match("https?://[^/]", url):
        raise InvalidArgument(f"invalid URL {url!r}: it must start with https:// or http://")
    timeout = httpx.Timeout(stall_timeout_s)
    # The file's own bytes are wanted, so they must not be compressed once more on their way.
    headers = {"Accept-Encoding": "identity", "User-Agent": f"squib/{VERSION}"}
    try:
        async with (
            httpx.AsyncClient(follow_redirects=True, timeout=timeout, headers=headers) as client,
            client.stream("GET", url) as response,
        ):
            if response.status_code != httpx.codes.OK:
                reason = f"the server answered {response.status_code} {response.reason_phrase}".rstrip()
                raise DownloadFailed(f"{url} cannot be downloaded: {reason}")
            with disk_errors(target.parent), Undo(lambda: target.unlink(missing_ok=True)):
                await _save(response, target, sha256, max_bytes, on_progress)
    except httpx.InvalidURL as error:
        raise InvalidArgument(f"invalid URL {url!r}: {error}") from None
    except httpx.TimeoutException:
        raise DownloadFailed(f"{url} cannot be downloaded: no data for {stall_timeout_s:g} s") from None
    except httpx.HTTPError as error:
        raise DownloadFailed(f"{url} cannot be downloaded: {error or type(error).__name__}") from error


async def _save(response: httpx.Response, target: Path, sha256: str, max_bytes: int, on_progress: OnProgress) -> None:
    total = _content_length(response)
    if total is not None and total > max_bytes:
        raise DownloadFailed(f"{response.url} has {total} bytes; at most {max_bytes} were expected")
    digest, done = hashlib.sha256(), 0
    with target.open("xb") as file:
        async for chunk in response.aiter_raw():
            done += len(chunk)
            if done > max_bytes:
                raise DownloadFailed(f"{response.url} has more than {max_bytes} bytes")
            file.write(chunk)
            digest.update(chunk)
            on_progress(Progress(step="download", done=done, total=total, unit="bytes"))
    if digest.hexdigest() != sha256:
        raise DownloadFailed(
            f"{response.url} is not the file that was expected: its SHA-256 is {digest.hexdigest()}, not {sha256}"
        )


def _content_length(response: httpx.Response) -> int | None:
    text = response.headers.get("content-length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
