"""Files by their address, kept in the cache: what `MODEL@ADDRESS` may say in place of a file.

    https://HOST/PATH/w.pt#KEY&sha256=HEX        KEY of the file, and the hash that it must have; both may be missing
    hf:OWNER/NAME[@REV]/PATH/w.pt#KEY            a file of a model repository on the Hugging Face hub

A file is fetched once. From then on its copy is read, without a network, and must keep its hash: the one that was
given, or else the one that it had when it was first fetched, which is told.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock, Timeout

from ..core.errors import RkdError
from .download import Asked, Patience, Told, download, sha256_of, size_text
from .files import cache_folder, write_atomic
from .text import parse_json, read_text

_HUB = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<path>[^#]+))?")
_SHA256 = re.compile("[0-9a-f]{64}")
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Remote:
    """A file somewhere else. `text` is what was typed; `key` chooses among the sets of weights in it."""

    text: str
    url: str
    key: str = ""
    sha256: str = ""
    size: int | None = None
    page: str = ""
    """Where a person gets the file, should the address lead nowhere."""

    @property
    def name(self) -> str:
        """The file's own name, whose ending says how it is read."""
        last = unquote(urlsplit(self.url).path).rpartition("/")[2]
        return re.sub(r"[^\w.+-]", "-", last)[-100:].lstrip(".") or "file"

    @property
    def folder(self) -> Path:
        """Its own in the cache: another hash is another file."""
        return cache_folder() / "downloads" / f"{Path(self.name).stem[:60]}-{_short(f'{self.url} {self.sha256}')}"


@dataclass(frozen=True)
class Kept:
    """A fetched file in the cache; `reference` is `FILE` or `FILE#KEY`."""

    path: Path
    sha256: str
    reference: str


def is_remote(text: str) -> bool:
    """Whether a reference is an address, and no file."""
    return text.startswith(("https://", "http://", "hf:"))


def read_remote(text: str, size: int | None = None, page: str = "") -> Remote:
    """Read an address. `size` in bytes and `page` are what else is known of it. Raises RkdError."""
    address, _, rest = text.partition("#")
    hashes = [part.removeprefix("sha256=").lower() for part in rest.split("&") if part.startswith("sha256=")]
    keys = [part for part in rest.split("&") if part and not part.startswith("sha256=")]
    if len(hashes) > 1 or len(keys) > 1:
        raise RkdError(f"{text}: behind # stand one KEY and one sha256=HEX at most")
    if hashes and not _SHA256.fullmatch(hashes[0]):
        raise RkdError(f"{text}: sha256={hashes[0][:80]} is no hash: 64 hexadecimal digits")
    url = _hub_url(address) if address.startswith("hf:") else address
    try:
        split = urlsplit(url)
        host = split.hostname
    except ValueError as error:
        raise RkdError(f"{text} is no address: {error}") from None
    if not host or not split.path.strip("/"):
        raise RkdError(f"{text} is no address of a file; expected https://HOST/PATH/FILE")
    if split.username or split.password:
        raise RkdError("an address with a password in it would stand in every report; download the file yourself")
    remote = Remote(text, url, "".join(keys), "".join(hashes), size, page)
    if split.scheme == "http" and not hashes and host not in _LOCAL:
        raise RkdError(f"{text}: over http anybody on the way may change it: give its hash, #sha256=HEX, or use https")
    return remote


def keep(remote: Remote, told: Told, patience: Patience | None = None) -> Kept:
    """The file in the cache, fetched if it is not there. Several processes may ask at once. Raises RkdError."""
    path, pin = remote.folder / remote.name, remote.folder / "fetched.json"
    with _alone(remote, told):
        pinned = _pinned(pin)
        wanted = remote.sha256 or str(pinned.get("sha256") or "")
        if path.is_file():
            found = _hash(path)
            if found != (wanted or found):
                raise RkdError(
                    f"{path} has changed since it was fetched from {remote.url}: its SHA-256 is {found}, not {wanted}. "
                    "Delete it, and it is fetched again"
                )
        else:
            found = _fetch(remote, wanted, path, told, patience)
        if pinned.get("sha256") != found:
            write_atomic(pin, json.dumps({"url": remote.url, "sha256": found, "size": path.stat().st_size}).encode())
            if not remote.sha256:
                told.message(
                    f"no hash was known of {remote.url}; from now on it must have the SHA-256 {found} (to hold others "
                    f"to it: #{'&'.join(filter(None, (remote.key, f'sha256={found}')))} behind the address)"
                )
    return Kept(path, found, f"{path}#{remote.key}" if remote.key else str(path))


def is_kept(remote: Remote) -> bool:
    """Whether it lies in the cache."""
    return (remote.folder / remote.name).is_file()


def hub_file(repository: str, file: str) -> tuple[Path, list[str]]:
    """A file of a model repository on the Hugging Face hub, OWNER/NAME or OWNER/NAME@REV, fetched if it is not in the
    cache; and what the user should know of it, a sentence each. Raises RkdError."""
    notes: list[str] = []
    return keep(read_remote(f"hf:{repository}/{file}"), Messages(notes.append)).path, notes


@dataclass(frozen=True)
class Messages:
    """Hands the lines for the user on to a function."""

    tell: Callable[[str], object]

    def message(self, text: str) -> None:
        self.tell(text)

    def doing(self, text: str) -> None: ...


def _fetch(remote: Remote, wanted: str, path: Path, told: Told, patience: Patience | None) -> str:
    asked = Asked(remote.url, remote.size, wanted, _token(remote.url))
    size = f" ({size_text(remote.size)})" if remote.size else ""
    told.message(f"downloading {remote.name}{size} from {asked.host} into {path.parent}")
    try:
        return download(asked, path, told, patience)
    except RkdError as error:
        if wanted and not remote.sha256 and wanted in str(error):
            error = RkdError(
                f"{error}. That was its hash when it was first fetched here. If its author has published another "
                f"version and you want it, delete {path.parent}"
            )
        where = f" ({remote.page} is its page; a file from there: MODEL@FILE)" if remote.page else ""
        raise RkdError(f"{error}{where}") from None


@contextmanager
def _alone(remote: Remote, told: Told) -> Iterator[None]:
    """Inside, no other process fetches this very file."""
    lock = FileLock(remote.folder / ".lock")
    try:
        remote.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            told.message(f"waiting for another process that fetches {remote.name}")
            lock.acquire()
    except OSError as error:
        why = error.strerror or error
        raise RkdError(f"cannot write into the cache folder {remote.folder}: {why}; set RKD_CACHE") from None
    try:
        yield
    finally:
        lock.release()


def _hub_url(address: str) -> str:
    """Raises RkdError."""
    match = _HUB.fullmatch(address)
    if match is None or not match["path"]:
        raise RkdError(f"{address}: expected hf:OWNER/NAME/FILE or hf:OWNER/NAME@REV/FILE")
    host = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return f"{host.rstrip('/')}/{match['repository']}/resolve/{match['revision'] or 'main'}/{quote(match['path'])}"


def _token(url: str) -> Mapping[str, str]:
    """What the hub wants of who may read a closed repository."""
    host = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    token = os.environ.get("HF_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token and url.startswith(f"{host.rstrip('/')}/") else {}


def _pinned(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text(path))
    except FileNotFoundError:
        return {}
    except ValueError:
        content = None
    if not isinstance(content, dict) or not _SHA256.fullmatch(str(content.get("sha256"))):
        raise RkdError(f"{path} is damaged; delete it, and the file beside it is taken as it is")
    return content


def _hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise RkdError(f"cannot read {path}: {error.strerror or error}") from None


def _short(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:12]
