"""Pushing to a hub on this machine's loopback."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rkd.core.errors import RkdError
from rkd.export.hub import check_repository, push


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as one commit of small files takes."""

    files: dict[str, bytes]
    asked: list[str]
    status: int

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.asked.append(self.path)
        address = f"http://{self.headers['host']}/me/net"
        if self.status != 200:
            self.answer({"error": "You are not allowed"})
        elif self.path.endswith("/create"):
            self.answer({"url": address})
        elif "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            self.answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]}
            )
        elif "/commit/" in self.path:
            for line in body.splitlines():
                value = json.loads(line)["value"]
                if "content" in value:
                    self.files[value["path"]] = base64.b64decode(value["content"])
            self.answer({"success": True, "commitUrl": f"{address}/commit/abc", "commitOid": "abc"})
        else:
            self.answer({})

    def do_GET(self) -> None:
        self.answer({"id": "me/net", "siblings": []})

    def answer(self, content: Any) -> None:
        self.send_response(self.status)
        text = json.dumps(content).encode()
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    package = pytest.importorskip("huggingface_hub")
    Hub.files, Hub.asked, Hub.status = {}, [], 200
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"

    class Local(package.HfApi):  # type: ignore[name-defined, misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(endpoint=address, token="hf_test", **options)

    monkeypatch.setattr(package, "HfApi", Local)
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("---\nlibrary_name: onnx\n---\n# card")
    (tmp_path / "model.onnx").write_bytes(b"\x00weights")
    return tmp_path


def test_a_folder_is_sent(hub: type[Hub], folder: Path) -> None:
    assert push(folder, "me/net").endswith("/me/net/commit/abc")
    assert hub.files["model.onnx"] == b"\x00weights" and b"# card" in hub.files["README.md"]


def test_a_refusal_says_what_to_type(hub: type[Hub], folder: Path) -> None:
    hub.status = 403
    with pytest.raises(RkdError, match=r"is complete, but could not be sent to me/net: .*hf upload me/net"):
        push(folder, "me/net")
    assert not hub.files


@pytest.mark.parametrize("name", ["net", "a/b/c", "../x y", "/net"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(RkdError, match=r"expected OWNER/NAME"):
        check_repository(name)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RkdError, match=r"--push needs huggingface_hub: pip install 'rkd-toolkit\[hub\]'"):
        check_repository("me/net")
