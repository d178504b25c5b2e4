"""An HTTP server on loopback that answers as a test says."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web:
    """Answers by path. ``paths`` are those that were asked for."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.ended = threading.Event()
        """Set at the end, so that a stalled answer ends too."""
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.paths.append(self.path)
                page = web.pages.get(self.path)
                with contextlib.suppress(ConnectionError):
                    page(self) if page else self.send_error(404)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def serve(self, path: str, body: bytes, *, length: int | None = None) -> None:
        """Answer with ``body``; ``length`` is what is claimed, -1 for no claim."""

        def page(request: BaseHTTPRequestHandler) -> None:
            request.send_response(200)
            if length != -1:
                request.send_header("Content-Length", str(len(body) if length is None else length))
            request.end_headers()
            request.wfile.write(body)

        self.pages[path] = page

    def redirect(self, path: str, target: str) -> None:
        def page(request: BaseHTTPRequestHandler) -> None:
            request.send_response(302)
            request.send_header("Location", target)
            request.send_header("Content-Length", "0")
            request.end_headers()

        self.pages[path] = page

    def stall(self, path: str, first: bytes) -> None:
        """Answer with the first bytes, then with none."""

        def page(request: BaseHTTPRequestHandler) -> None:
            request.send_response(200)
            request.send_header("Content-Length", str(len(first) + 1))
            request.end_headers()
            request.wfile.write(first)
            request.wfile.flush()
            self.ended.wait(30)

        self.pages[path] = page

    @contextlib.contextmanager
    def running(self) -> Iterator["Web"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self.ended.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()
