"""One file from a server: whole and checked, or not at all.

What arrives goes into `NAME.part`, which gets its name when it is whole, has its size and its hash, and is no web page.
A transfer that is cut off goes on where it stopped, in the same call or in a later one, if the server's validator
(`ETag`, `Last-Modified`) or the known hash tells that it is still the same file; else it begins anew. Neither pooch nor
huggingface_hub goes on with what an earlier process began.

Only http and https are spoken, also behind redirects; from https nothing leads back to http.
"""

import contextlib
import errno
import hashlib
import http.client
import io
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from rkd import __version__

from ..core.errors import RkdError
from .files import open_file, open_to_change, sync_folder, write_atomic

CHUNK = 1 << 20
LEAST = 1024
"""Bytes that must arrive within the patience, so that a server cannot keep a process by a byte now and then."""
MOST = 64 << 30
"""Bytes of a file of which no size is known."""
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
"""Answers of a server that may be others a moment later."""


class Told(Protocol):
    """Told of a download, as a workflow's reporter is."""

    def message(self, text: str) -> None:
        """One line for the user."""

    def doing(self, text: str) -> None:
        """What goes on from now."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server: `seconds` for it to answer, or for `LEAST` bytes; `tries` in all; `pause` seconds
    before the second one, twice as many before the third."""

    seconds: float = 30.0
    tries: int = 4
    pause: float = 1.0


@dataclass(frozen=True)
class Asked:
    """A file to fetch: its address, its size in bytes and SHA-256 where they are known, headers for its own host."""

    url: str
    size: int | None = None
    sha256: str = ""
    headers: Mapping[str, str] | None = None

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc


class _Cut(Exception):
    """A transfer that may go on, or work when it is tried again."""


class _OtherBytes(Exception):
    """Bytes of another file than the one that was begun, or that is expected."""


def download(asked: Asked, path: Path, told: Told, patience: Patience | None = None) -> str:
    """Fetch a file to `path`. Returns its SHA-256. Raises RkdError; what an earlier call got of the file is used."""
    patience = patience or Patience()
    part = _Part(path)
    for number in range(patience.tries):
        try:
            if number:
                time.sleep(patience.pause * number)
            resumed = _transfer(asked, part, told, patience.seconds)
            return _complete(asked, part, resumed)
        except _Cut as cut:
            reason = cut
        except _OtherBytes as other:
            part.remove()
            reason = _Cut(str(other))
    kept = part.size
    more = f"; the {kept:,} bytes that arrived are kept, and the same command goes on from there" if kept else ""
    raise RkdError(f"{asked.url}: {reason}, also at the last of {patience.tries} tries{more}")


def sha256_of(path: Path) -> str:
    """Of a file, in hex. Raises OSError."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


class _Part:
    """The beginning of a file, and what its server said of the whole: `validator`, `total` bytes."""

    def __init__(self, path: Path) -> None:
        self.whole = path
        self.path = path.with_name(f"{path.name}.part")
        self.about = path.with_name(f"{path.name}.part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def said(self) -> dict[str, Any]:
        try:
            with open_file(self.about) as file:
                content = json.loads(file.read(1 << 16))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def begin(self, validator: str, total: int | None) -> None:
        write_atomic(self.about, json.dumps({"validator": validator, "total": total}).encode())

    def remove(self) -> None:
        for path in (self.path, self.about):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _transfer(asked: Asked, part: _Part, told: Told, seconds: float) -> bool:
    """Receive the file, or the rest of it. Returns whether it was the rest. Raises RkdError, _Cut, _OtherBytes."""
    begun, said = part.size, part.said()
    validator = str(said.get("validator") or "")
    if begun and not (validator or asked.sha256):
        part.remove()  # nothing would tell whether the rest is of the same file
        begun = 0
    request = urllib.request.Request(asked.url, headers={"User-Agent": f"rkd/{__version__}"})
    request.add_header("Accept-Encoding", "identity")
    for name, value in (asked.headers or {}).items():
        request.add_unredirected_header(name, value)
    if begun:
        request.add_header("Range", f"bytes={begun}-")
        if validator:
            request.add_header("If-Range", validator)
    with _opened(request, seconds) as response:
        total = _length(response)
        if response.status == 206:
            where = response.headers.get("Content-Range", "")
            span, _, whole = where.removeprefix("bytes ").partition("/")
            now = _validator(response)
            if not begun or span.split("-")[0] != str(begun) or (validator and now and now != validator):
                raise _OtherBytes(f"the server sent {where or 'a part'} of another file than the one that was begun")
            total = int(whole) if whole.isdigit() else None
            if said.get("total") not in (None, total):
                raise _OtherBytes("the file has another size now than when it was begun")
        elif response.status == 200:
            begun = 0
        else:
            raise RkdError(f"{asked.url}: the server answered {response.status} {response.reason}, and sent no file")
        _check_answer(asked, response, total)
        if not begun:
            part.remove()
        _check_room(part, (total or asked.size or begun) - begun)
        if not begun:
            part.begin(_validator(response), total)
        _receive(response, part, begun, total or asked.size, told, seconds)
    if total is not None and part.size < total:
        raise _Cut(f"the server cut it off after {part.size:,} of {total:,} bytes")
    return begun > 0


def _receive(
    response: http.client.HTTPResponse, part: _Part, begun: int, total: int | None, told: Told, seconds: float
) -> None:
    """Write what arrives behind the first `begun` bytes. Raises _Cut, RkdError for the disk."""
    done, since, mark, shown = begun, time.monotonic(), begun, -1
    with _disk(part), open_to_change(part.path) as raw, io.BufferedWriter(raw) as file:
        file.seek(begun)
        file.truncate()
        while chunk := _read(response):
            file.write(chunk)
            done += len(chunk)
            if done > MOST:
                raise RkdError(
                    f"{part.whole.name}: the server sends more than {MOST >> 30} GiB; no weights are so large"
                )
            now = time.monotonic()
            if now - since >= seconds:
                if done - mark < LEAST:
                    raise _Cut(f"the server sent {done - mark:,} bytes in {seconds:g} seconds")
                since, mark = now, done
            if total and (tenth := 10 * done // total) > shown:
                shown = tenth
                told.doing(f"downloading {part.whole.name}, {10 * tenth} % of {size_text(total)}")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"the server cut it off: {_reason(error)}") from None


def _complete(asked: Asked, part: _Part, resumed: bool) -> str:
    """Give the file its name, if it is the right one. Returns its SHA-256."""
    problem = ""
    with _disk(part):
        with open_file(part.path) as file:
            start = file.read(256).lstrip().lower()
        found = sha256_of(part.path)
    if start.startswith((b"<!doctype", b"<html")):
        problem = WEB_PAGE
    elif asked.size is not None and part.size != asked.size:
        problem = f"it has {part.size:,} bytes where {asked.size:,} are expected; it is not kept"
    elif asked.sha256 and found != asked.sha256:
        problem = f"its SHA-256 is {found} where {asked.sha256} is expected: another file, or damaged; it is not kept"
    if problem:
        part.remove()
        if resumed:
            raise _OtherBytes(problem)
        raise RkdError(f"{asked.url}: {problem}")
    with _disk(part):
        with open(part.path, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(part.path, part.whole)
    part.remove()
    sync_folder(part.whole.parent)
    return found


WEB_PAGE = "the server sent a web page, not a file: open the address in a browser, and give what it saves as MODEL@FILE"


def _check_answer(asked: Asked, response: http.client.HTTPResponse, total: int | None) -> None:
    """Raise RkdError for what is no file, or not the expected one, before any of it is received."""
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise RkdError(f"{asked.url}: {WEB_PAGE}")
    if coding := response.headers.get("Content-Encoding", "").replace("identity", ""):
        raise RkdError(f"{asked.url}: the server sends it as {coding}, though it was asked for the file as it is")
    if asked.size is not None and total is not None and total != asked.size:
        raise RkdError(f"{asked.url}: it has {total:,} bytes where {asked.size:,} are expected; it is not fetched")
    chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    if total is None and asked.size is None and not (asked.sha256 or chunked):
        raise RkdError(
            f"{asked.url}: the server does not say how long it is, so that nobody could tell whether it arrived whole; "
            "give its hash (#sha256=...), or download it yourself and give MODEL@FILE"
        )


def _check_room(part: _Part, needed: int) -> None:
    with _disk(part):
        free = shutil.disk_usage(part.path.parent).free
    if needed > free:
        raise RkdError(
            f"{part.whole.name} takes {size_text(needed)} more, and {part.path.parent} has room for {size_text(free)}; "
            "free some, or set RKD_CACHE to a folder with more"
        )


@contextlib.contextmanager
def _disk(part: _Part) -> Iterator[None]:
    """Inside, an OSError is the disk's. What was written is kept: it is whole as far as it goes."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "free some room, or set RKD_CACHE to another folder" if full else "set RKD_CACHE to another folder"
        raise RkdError(f"cannot write {part.path}: {why}; {hint}") from None


def size_text(count: int) -> str:
    """`205 MB`, as hosts write it."""
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return f"{count / 1000**power:.3g} {unit}"
    return f"{count} bytes"


def _length(response: http.client.HTTPResponse) -> int | None:
    """Bytes of the answer's body, where it says them."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _validator(response: http.client.HTTPResponse) -> str:
    """What the file would no longer have if it changed; a weak ETag says nothing about its bytes."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


@contextlib.contextmanager
def _opened(request: urllib.request.Request, seconds: float) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request. Raises _Cut where trying again may help, else RkdError."""
    url = request.full_url
    try:
        response = _opener().open(request, timeout=seconds)
    except urllib.error.HTTPError as error:
        error.close()
        raise _refusal(url, error) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise RkdError(f"{url}: its host's certificate is not valid: {error.reason.verify_message}") from None
        if not isinstance(error.reason, OSError):  # an unknown scheme, a proxy's trouble
            raise RkdError(f"{url}: {error.reason}") from None
        raise _Cut(f"the server cannot be reached: {_reason(error.reason)}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"the server does not answer: {_reason(error)}") from None
    except ValueError as error:
        raise RkdError(f"{url} is no address: {error}") from None
    with response:
        yield response


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    """What an answer that is none means."""
    code, words = error.code, f"the server answered {error.code} {error.reason}"
    if code == 416:
        return _OtherBytes("the file is shorter now than what was begun of it")
    if code in TRANSIENT:
        return _Cut(words)
    if 300 <= code < 400:
        return RkdError(f"{url}: where it leads to is not followed: {str(error.reason).split(chr(10))[0].strip()}")
    hints = {404: "it is not there (any more): look at its page", 410: "it is gone: look at its page",
             401: "it wants a login; on Hugging Face: accept its terms there, and set HF_TOKEN",
             403: "it may not be read; on Hugging Face: accept its terms there, and set HF_TOKEN"}  # fmt: skip
    return RkdError(f"{url}: {words}{': ' if code in hints else ''}{hints.get(code, '')}")


def _reason(error: BaseException) -> str:
    """The words of a network error, which are often none."""
    if isinstance(error, TimeoutError):
        return "nothing came in time"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return words or type(error).__name__


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https alone, and from https to https; what is for one host is not sent to the next."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        schemes = ("https",) if urlsplit(req.full_url).scheme == "https" else ("http", "https")
        if urlsplit(newurl).scheme not in schemes:
            raise RkdError(f"{req.full_url} leads to {newurl[:200]}, which is not followed: no {' or '.join(schemes)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Without the handlers for files, FTP and data: that urllib brings along."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), urllib.request.UnknownHandler(), urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(), urllib.request.HTTPDefaultErrorHandler(), _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener
