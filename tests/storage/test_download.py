"""What a server may do to a download: each misbehaviour ends in one clear message, and nothing is taken for a file that
is none; a cut transfer goes on where it stopped."""

from __future__ import annotations

import hashlib
import resource
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rkd.core.errors import RkdError
from rkd.storage.download import Asked, Patience, download, sha256_of, size_text

from ..loopback import CONTENT, Answer, Behaviour, Loopback, cut_after, loopback, status, then, whole

QUICK = Patience(seconds=0.3, tries=2, pause=0.0)
ONCE = Patience(seconds=0.3, tries=1, pause=0.0)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[::-1]


class Heard:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def doing(self, text: str) -> None:
        self.said.append(text)


def fetch(server: Loopback, path: Path, patience: Patience = QUICK, **known) -> str:
    return download(Asked(f"{server.url}/file", **known), path, Heard(), patience)


def refused(behaviour: Behaviour, path: Path, patience: Patience = QUICK, **known) -> str:
    """The message of a download that fails; nothing lies where the file should be."""
    with loopback(file=behaviour) as server, pytest.raises(RkdError) as caught:
        fetch(server, path, patience, **known)
    assert not path.exists()
    assert str(caught.value).count("\n") == 0, "one line"
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w.pt"


def left(path: Path) -> list[str]:
    return sorted(other.name for other in path.parent.iterdir())


def test_a_file(path: Path) -> None:
    heard = Heard()
    with loopback(file=whole()) as server:
        assert download(Asked(f"{server.url}/file", len(CONTENT), SHA256), path, heard, QUICK) == SHA256
    assert path.read_bytes() == CONTENT and left(path) == ["w.pt"]
    assert sha256_of(path) == SHA256
    assert heard.said[-1] == "downloading w.pt, 100 % of 10.2 kB"


def test_cut_off_and_gone_on_with(path: Path) -> None:
    """In the same call, and in a later one, only the rest is fetched."""
    with loopback(file=then(cut_after(4000), whole())) as server:
        assert fetch(server, path) == SHA256
        assert server.asked == [("/file", None), ("/file", "bytes=4000-")]
    assert left(path) == ["w.pt"]
    path.unlink()
    said = refused(cut_after(5000), path, ONCE)
    assert "cut it off after 5,000 of 10,240 bytes" in said
    assert "the 5,000 bytes that arrived are kept, and the same command goes on from there" in said
    assert left(path) == ["w.pt.part", "w.pt.part.json"]
    with loopback(file=whole()) as server:
        assert fetch(server, path) == SHA256
        assert server.asked == [("/file", "bytes=5000-")]
    assert path.read_bytes() == CONTENT and left(path) == ["w.pt"]


def test_a_web_page(path: Path) -> None:
    page = b"\n<!DOCTYPE html><html>Too many users</html>"
    assert "the server sent a web page, not a file" in refused(whole(page, kind="text/html"), path)
    assert "give what it saves as MODEL@FILE" in refused(whole(page), path), "whatever it says of its kind"
    assert left(path) == []


def test_another_hash(path: Path) -> None:
    said = refused(whole(OTHER), path, sha256=SHA256)
    assert f"its SHA-256 is {hashlib.sha256(OTHER).hexdigest()} where {SHA256} is expected" in said
    assert left(path) == []


def test_another_size(path: Path) -> None:
    assert "it has 10,240 bytes where 99 are expected; it is not fetched" in refused(whole(), path, size=99)

    def unsaid(to: Answer) -> None:
        to.start(200, Transfer_Encoding="chunked")
        to.wfile.write(b"3\r\nabc\r\n0\r\n\r\n")

    assert "it has 3 bytes where 99 are expected; it is not kept" in refused(unsaid, path, size=99)
    assert left(path) == []


def test_no_end_that_could_be_checked(path: Path) -> None:
    """Without a length a cut cannot be told from the end, unless the hash is known; chunks tell their end."""

    def unsaid(to: Answer) -> None:
        to.start(200)
        to.wfile.write(CONTENT)

    def chunked(to: Answer) -> None:
        to.start(200, Transfer_Encoding="chunked")
        to.wfile.write(b"3\r\nabc\r\n")

    assert "the server does not say how long it is" in refused(unsaid, path)
    with loopback(file=unsaid) as server:
        assert fetch(server, path, sha256=SHA256) == SHA256
    path.unlink()
    assert "the server cut it off" in refused(chunked, path)


def test_redirects(path: Path) -> None:
    loop, away = status(302, Location="/file"), status(302, Location="file:///etc/passwd")
    assert "where it leads to is not followed" in refused(loop, path) and "infinite loop" in refused(loop, path)
    assert "file:///etc/passwd" in refused(away, path) and "is not followed" in refused(away, path)
    assert left(path) == []
    with loopback(file=status(302, Location="/there"), there=whole()) as server:
        secret = {"Authorization": "Bearer 1"}
        assert download(Asked(f"{server.url}/file", headers=secret), path, Heard(), QUICK) == SHA256
        assert [one.get("Authorization") for one in server.headers] == ["Bearer 1", None]


@pytest.mark.parametrize(
    ("code", "words", "times"),
    [(404, "404 Not Found: it is not there (any more)", 1), (403, "it may not be read", 1), (401, "set HF_TOKEN", 1),
     (500, "500 Internal Server Error, also at the last of 2 tries", 2),
     (503, "503 Service Unavailable, also at the last of 2 tries", 2), (204, "204 No Content, and sent no file", 1)],
)  # fmt: skip
def test_no_answer_to_use(code: int, words: str, times: int, path: Path) -> None:
    with (
        loopback(file=status(code)) as server,
        pytest.raises(RkdError, match=words.replace("(", r"\(").replace(")", r"\)")),
    ):
        fetch(server, path)
    assert len(server.asked) == times, "what may pass is tried again"
    assert left(path) == []


def test_slow_bytes(path: Path) -> None:
    enough = threading.Event()

    def silent(to: Answer) -> None:
        to.start(200, Content_Length=len(CONTENT), ETag='"1"')
        to.wfile.write(CONTENT[:2000])
        enough.wait(5)

    def trickling(to: Answer) -> None:
        to.start(200, Content_Length=len(CONTENT), ETag='"1"')
        for place in range(100):
            to.wfile.write(CONTENT[place : place + 1])
            if enough.wait(0.02):
                break

    assert "nothing came in time" in refused(silent, path, ONCE)
    assert "the 2,000 bytes that arrived are kept" in refused(silent, path, ONCE)
    path.with_name("w.pt.part").unlink()
    short = Patience(seconds=0.15, tries=1, pause=0)
    assert "bytes in 0.15 seconds" in refused(trickling, path, short)
    enough.set()


def test_nobody_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        RkdError, match=r"the server cannot be reached: Connection refused, also at the last of 2 tries$"
    ):
        download(Asked(f"http://127.0.0.1:{port}/file"), path, Heard(), QUICK)
    assert left(path) == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_other_schemes(url: str, path: Path) -> None:
    with pytest.raises(RkdError, match="unknown url type"):
        download(Asked(url), path, Heard(), QUICK)
    assert left(path) == []


def begun(path: Path, **how) -> None:
    """A part of 4,000 bytes, as a cut left it."""
    refused(cut_after(4000, **how), path, ONCE)
    assert path.with_name("w.pt.part").stat().st_size == 4000


def test_a_server_without_ranges(path: Path) -> None:
    begun(path)
    with loopback(file=cut_after(len(CONTENT))) as server:
        assert fetch(server, path) == SHA256
        assert server.asked == [("/file", "bytes=4000-")]
    assert path.read_bytes() == CONTENT


def test_a_file_that_changed_since(path: Path) -> None:
    """By its ETag, its length, or its hash alone: never half of one and half of the other."""
    begun(path)
    with loopback(file=whole(OTHER, '"2"')) as server:
        assert fetch(server, path) == hashlib.sha256(OTHER).hexdigest()
    assert path.read_bytes() == OTHER
    path.unlink()

    def ignores_if_range(to: Answer) -> None:
        span = f"bytes {to.begin()}-{len(OTHER) - 1}/{len(OTHER)}"
        to.start(206, Content_Length=len(OTHER) - to.begin(), Content_Range=span, ETag='"2"')
        to.wfile.write(OTHER[to.begin() :])

    begun(path)
    with loopback(file=then(ignores_if_range, whole(OTHER, '"2"'))) as server:
        assert fetch(server, path) == hashlib.sha256(OTHER).hexdigest()
        assert [wanted for _, wanted in server.asked] == ["bytes=4000-", None]
    path.unlink()
    begun(path, etag="")
    with loopback(file=whole(etag="")) as server:
        assert fetch(server, path) == SHA256
        assert server.asked == [("/file", None)], "nothing would tell whether the rest is of the same file"
    path.unlink()
    begun(path, etag="")
    with loopback(file=then(whole(OTHER, etag=""), whole(etag=""))) as server:
        assert fetch(server, path, sha256=SHA256) == SHA256
        assert [wanted for _, wanted in server.asked] == ["bytes=4000-", None], "the hash told"
    path.unlink()
    begun(path)
    with loopback(file=then(whole(CONTENT[:3000]), whole(CONTENT[:3000]))) as server:
        assert fetch(server, path) == hashlib.sha256(CONTENT[:3000]).hexdigest(), "shorter than what was begun"


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """Inside, no file of this process becomes larger, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with at_most(6000):
        assert "w.pt.part: File too large; free some room, or set RKD_CACHE" in refused(whole(), path)
    with loopback(file=whole()) as server:
        assert fetch(server, path) == SHA256
        assert server.asked == [("/file", "bytes=6000-")], "what was written is whole as far as it goes"
    path.unlink()
    usage = shutil.disk_usage(path.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    assert "w.pt takes 10.2 kB more, and" in refused(whole(), path)
    assert left(path) == [], "nothing is begun that cannot be finished"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    said = refused(whole(), tmp_path / "nowhere" / "w.pt")
    assert "cannot write" in said and "set RKD_CACHE" in said


def test_sizes_in_words() -> None:
    assert [size_text(count) for count in (12, 1234, 204_818_947, 3 * 10**9)] == [
        "12 bytes",
        "1.23 kB",
        "205 MB",
        "3 GB",
    ]
