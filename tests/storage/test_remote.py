"""Addresses in the place of files, and the copies in the cache."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest

from rkd.core.errors import RkdError
from rkd.storage.download import Patience
from rkd.storage.files import cache_folder
from rkd.storage.remote import hub_file, is_kept, is_remote, keep, read_remote

from ..loopback import CONTENT, cut_after, loopback, status, then, whole

SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[::-1]
ONCE = Patience(seconds=0.5, tries=1, pause=0.0)


class Heard:
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def doing(self, text: str) -> None: ...


def test_addresses() -> None:
    remote = read_remote(f"https://host/a%20b/w.pt?download=1#model&sha256={SHA256.upper()}")
    assert (remote.key, remote.sha256, remote.name) == ("model", SHA256, "w.pt")
    assert remote.url == "https://host/a%20b/w.pt?download=1"
    assert read_remote("https://host/w.pt").key == ""
    assert read_remote("https://host/w.pt").folder != read_remote(f"https://host/w.pt#sha256={SHA256}").folder
    assert read_remote("https://host/..%2f..%2fx.pt").name == "x.pt", "no name leads out of its folder"
    assert is_remote("hf:a/b/c.pt") and not is_remote("wrn34") and not is_remote("runs/hf:a")


def test_addresses_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    remote = read_remote("hf:owner/name@v1.0/checkpoint/w.pt#ema")
    assert remote.url == "https://huggingface.co/owner/name/resolve/v1.0/checkpoint/w.pt" and remote.key == "ema"
    assert read_remote("hf:owner/name/w.pt").url == "https://huggingface.co/owner/name/resolve/main/w.pt"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror/")
    assert read_remote("hf:owner/name/w.pt").url == "https://mirror/owner/name/resolve/main/w.pt"


@pytest.mark.parametrize(
    ("text", "words"),
    [("https://", "is no address"), ("https://host/", "is no address of a file"), ("https://[host/x", "is no address"),
     ("https://me:secret@host/w.pt", "a password in it"), ("https://host/w.pt#a&b", "one KEY"),
     ("https://host/w.pt#sha256=12", "is no hash: 64 hexadecimal digits"), ("hf:owner", "expected hf:OWNER/NAME/FILE"),
     ("hf:owner/name", "expected hf:OWNER/NAME/FILE"), ("http://host/w.pt", "over http anybody on the way")],
)  # fmt: skip
def test_addresses_that_are_none(text: str, words: str) -> None:
    with pytest.raises(RkdError, match=words) as caught:
        read_remote(text)
    assert "secret" not in str(caught.value)


def test_fetched_once_and_read_without_a_network(cache: Path) -> None:
    heard = Heard()
    with loopback(**{"w.pt": whole()}) as server:
        remote = read_remote(f"{server.url}/w.pt#sha256={SHA256}")
        assert not is_kept(remote)
        kept = keep(remote, heard)
        assert kept.path.read_bytes() == CONTENT and kept.reference == str(kept.path)
        assert kept.path.is_relative_to(cache_folder()) and cache_folder() == cache
    assert keep(remote, heard) == kept, "the server is gone"
    assert is_kept(remote) and len(server.asked) == 1
    assert len(heard.said) == 1 and heard.said[0].startswith("downloading w.pt from 127.0.0.1:")


def test_an_unknown_hash_is_told_and_kept_to(cache: Path) -> None:
    heard = Heard()
    with loopback(**{"w.pt": then(whole(), whole(OTHER, '"2"'))}) as server:
        remote = read_remote(f"{server.url}/w.pt#ema")
        kept = keep(remote, heard)
        assert kept.reference.endswith("w.pt#ema")
        assert f"from now on it must have the SHA-256 {SHA256}" in heard.said[-1]
        assert f"#ema&sha256={SHA256} behind the address" in heard.said[-1]
        kept.path.unlink()
        with pytest.raises(RkdError, match="That was its hash when it was first fetched here"):
            keep(remote, Heard(), ONCE)
        assert not kept.path.exists()
        explicit = read_remote(f"{server.url}/w.pt#sha256={hashlib.sha256(OTHER).hexdigest()}")
        assert keep(explicit, Heard(), ONCE).path.read_bytes() == OTHER, "who knows the new hash gets the new file"


def test_a_copy_that_changed(cache: Path) -> None:
    with loopback(**{"w.pt": whole()}) as server:
        remote = read_remote(f"{server.url}/w.pt")
        kept = keep(remote, Heard())
        kept.path.write_bytes(OTHER)
        with pytest.raises(RkdError, match=r"has changed since it was fetched.* Delete it, and it is fetched again"):
            keep(remote, Heard())
        kept.path.unlink()
        assert keep(remote, Heard()).path.read_bytes() == CONTENT
        kept.path.with_name("fetched.json").write_text("[]")
        with pytest.raises(RkdError, match=r"fetched\.json is damaged; delete it"):
            keep(remote, Heard())


def test_the_page_for_people(cache: Path) -> None:
    with loopback() as server:
        remote = read_remote(f"{server.url}/w.pt", page="https://authors/page")
        with pytest.raises(
            RkdError, match=r"404 Not Found.*\(https://authors/page is its page; a file from there: MODEL@"
        ):
            keep(remote, Heard(), ONCE)


def test_a_cut_in_one_process_and_the_rest_in_another(cache: Path) -> None:
    with loopback(**{"w.pt": then(cut_after(4000), whole())}) as server:
        remote = read_remote(f"{server.url}/w.pt#sha256={SHA256}")
        with pytest.raises(RkdError, match="the same command goes on from there"):
            keep(remote, Heard(), ONCE)
        assert not is_kept(remote)
        assert keep(remote, Heard(), ONCE).path.read_bytes() == CONTENT
        assert [wanted for _, wanted in server.asked] == [None, "bytes=4000-"]


def test_several_at_once(cache: Path) -> None:
    with loopback(**{"w.pt": whole()}) as server:
        remote = read_remote(f"{server.url}/w.pt")
        threads = [threading.Thread(target=keep, args=(remote, Heard())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.asked) == 1, "one fetches, the others wait"
        assert json.loads((remote.folder / "fetched.json").read_text())["sha256"] == SHA256


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RKD_CACHE", str(tmp_path / "file"))
    with pytest.raises(RkdError, match=r"cannot write into the cache folder .*; set RKD_CACHE"):
        keep(read_remote("https://host/w.pt"), Heard(), ONCE)


def test_the_hub_gets_the_token_and_nobody_else(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = "owner/name/resolve/main/w.pt"
    with loopback(**{place: status(302, Location="/blob"), "blob": whole(), "w.pt": whole()}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "secret")
        path, notes = hub_file("owner/name", "w.pt")
        assert path.read_bytes() == CONTENT and SHA256 in notes[-1]
        monkeypatch.setenv("HF_ENDPOINT", "https://elsewhere")
        keep(read_remote(f"{server.url}/w.pt"), Heard())
        assert [one.get("Authorization") for one in server.headers] == ["Bearer secret", None, None]
