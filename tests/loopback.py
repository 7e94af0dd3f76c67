"""A server on loopback that behaves as badly as it is told to, and notes what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

CONTENT = bytes(range(256)) * 40


class Answer(BaseHTTPRequestHandler):
    """One request. A path's behaviour answers it; the methods below are what behaviours are made of."""

    server: Loopback
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.asked.append((self.path, self.headers.get("Range")))
        self.server.headers.append(dict(self.headers))
        behaviour = self.server.behaviours.get(self.path)
        if behaviour is None:
            self.send_error(404)
        else:
            behaviour(self)

    def start(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def begin(self) -> int:
        """Where the client wants it to begin."""
        wanted = self.headers.get("Range", "bytes=0-")
        return int(wanted.removeprefix("bytes=").rstrip("-"))

    def log_message(self, *arguments: object) -> None: ...


Behaviour = Callable[[Answer], None]


class Loopback(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.behaviours: dict[str, Behaviour] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None: ...


@contextmanager
def loopback(**behaviours: Behaviour) -> Iterator[Loopback]:
    """A running server: `loopback(file=whole())` answers `/file`."""
    server = Loopback()
    server.behaviours = {f"/{name}": behaviour for name, behaviour in behaviours.items()}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("no_proxy", "127.0.0.1")  # whatever proxy this machine has
            yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def whole(content: bytes = CONTENT, etag: str = '"1"', kind: str = "application/octet-stream") -> Behaviour:
    """The file as it should be: ranges are honoured, unless it is another one than the client began."""

    def answer(to: Answer) -> None:
        begin = to.begin() if to.headers.get("If-Range", etag) == etag else 0
        more = {"ETag": etag} if etag else {}
        if begin > len(content):
            to.start(416, Content_Length=0)
        elif begin:
            span = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            to.start(206, Content_Length=len(content) - begin, Content_Range=span, Content_Type=kind, **more)
        else:
            to.start(200, Content_Length=len(content), Content_Type=kind, **more)
        to.wfile.write(content[begin:])

    return answer


def cut_after(count: int, content: bytes = CONTENT, etag: str = '"1"') -> Behaviour:
    """Says how long it is, and closes the connection after `count` bytes."""

    def answer(to: Answer) -> None:
        more = {"ETag": etag} if etag else {}
        to.start(200, Content_Length=len(content), **more)
        to.wfile.write(content[:count])

    return answer


def then(*behaviours: Behaviour) -> Behaviour:
    """One behaviour after another; the last one from then on."""
    waiting = list(behaviours)

    def answer(to: Answer) -> None:
        (waiting.pop(0) if len(waiting) > 1 else waiting[0])(to)

    return answer


def status(code: int, **headers: str) -> Behaviour:
    return lambda to: to.start(code, Content_Length=0, **headers)
