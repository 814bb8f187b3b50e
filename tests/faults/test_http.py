"""Shards over http from a server that is not to be trusted: addresses, redirects, sizes, time."""

from __future__ import annotations

import io
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.data.tars import write_shards
from vlp.data import http
from vlp.data.flow import files
from vlp.data.http import Web, content, exists, is_public, shown
from vlp.data.remote import ShardCache
from vlp.data.schema import DataError
from vlp.data.shards import Shards
from vlp.data.stream import Stream, WebDataset
from vlp.data.urls import resolve

ROWS = {"http"}  # of docs/faults.md

INSIDE = Web(allow_private_hosts=True, seconds=20)


class Server(BaseHTTPRequestHandler):
    """Files by path, and what a hostile server does; `asked` keeps what was asked for."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []
    moved: ClassVar[dict[str, str]] = {}

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if path in self.moved:
            self.send_response(302)
            self.send_header("Location", self.moved[path])
            self.end_headers()
        elif path.startswith("/slow"):
            self._drip(header=path == "/slow-header")
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(64):
                self.wfile.write(bytes(1 << 20))
        elif path == "/packed":
            self._whole(b"x", {"Content-Encoding": "gzip"})
        elif path == "/short":
            self._whole(b"x" * 10, {}, length=100)
        elif path == "/huge":
            self._whole(b"x", {}, length=10**15)
        elif path in self.files:
            self._whole(self.files[path], {})
        else:
            self.send_error(404)

    def _whole(self, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body) if length is None else length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _drip(self, *, header: bool) -> None:
        """One byte now and then, each well before the timeout of a read."""
        if not header:
            self.send_response(200)
            self.end_headers()
        with_headers = b"HTTP/1.0 200 OK\r\nX-Long: "
        for byte in with_headers + bytes(1000) if header else bytes(1000):
            self.wfile.write(bytes([byte or 65]))
            time.sleep(0.05)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))
    paths = write_shards(tmp_path / "set", [5, 8])
    Server.files = {f"/{path.name}": path.read_bytes() for path in paths}
    Server.asked, Server.moved = [], {}
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    running.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hung up is no news
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    thread.join()
    running.server_close()


def read(url: str, web: Web = INSIDE) -> bytes:
    return b"".join(content(url, web))


def test_shards_come_over_http_where_it_is_allowed(server: str, tmp_path: Path) -> None:
    cache = ShardCache(folder=str(tmp_path / "shards"), web=INSIDE)
    records = Shards(urls=f"{server}/shard-00{{0..1}}.tar").open(cache)
    assert [records[i].key for i in (0, 12)] == ["000000", "000012"]
    Server.moved = {"/there.tar": "/shard-000.tar"}
    stream = Stream(WebDataset(urls=f"{server}/there.tar", samples_per_epoch=5, shuffle=0, web=INSIDE), seed=0)
    assert [stream.next().key for _ in range(5)] == [f"{i:06d}" for i in range(5)]
    with pytest.raises(DataError, match="1 of 2 shards are missing.*shard-009"):
        resolve(f"{server}/shard-00{{0,9}}.tar", web=INSIDE)
    with pytest.raises(DataError, match="a web server lists no files"):
        resolve(f"{server}/*.tar", web=INSIDE)


def test_no_address_inside_is_asked_unless_it_is_allowed(server: str) -> None:
    for url in (server, server.replace("127.0.0.1", "localhost"), "http://169.254.169.254/latest/meta-data"):
        with pytest.raises(DataError, match="no public address.*cache.web.allow_private_hosts"):
            resolve(f"{url}/shard-000.tar")
    stream = Stream(WebDataset(urls=f"{server}/shard-000.tar", samples_per_epoch=5), seed=0)
    with pytest.raises(DataError, match="no public address"):
        stream.next()
    assert Server.asked == []


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("file:///etc/hostname", "redirects to|not a url of http"),
        ("ftp://127.0.0.1/x", "not a url of http"),
        ("http://me:hidden@127.0.0.1/x", "user and password"),
        ("", "not followed"),
        ("/round", "more than 5 redirects"),
    ],
)
def test_redirects_come_through_the_same_door(to: str, said: str, server: str) -> None:
    Server.moved = {"/round": to}
    with pytest.raises(DataError, match=said) as error:
        read(f"{server}/round")
    assert "hidden" not in str(error.value)


def test_a_redirect_from_outside_to_inside_is_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first host counts as public, as if the server stood outside; where it leads to does not."""
    Server.moved = {"/out": "http://127.0.0.2/latest/meta-data"}
    monkeypatch.setattr(http, "is_public", lambda address: address == "127.0.0.1" or is_public(address))
    with pytest.raises(DataError, match=r"127\.0\.0\.2, which is no public address"):
        read(f"{server}/out", Web(seconds=20))


def test_the_address_that_was_checked_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when it is checked and inside a moment later: only the first answer is ever used."""
    answers, connected = iter(["93.184.216.34", "127.0.0.1"]), list[str]()

    def resolved(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "rebind.example", "an address is not looked up again"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(http.socket, "getaddrinfo", resolved)
    monkeypatch.setattr(socket, "create_connection", lambda place, **_: connected.append(place[0]) or _refuse())
    with pytest.raises(DataError, match="not reachable"):
        read("http://rebind.example/shard-000.tar", Web())
    with pytest.raises(DataError, match=r"127\.0\.0\.1, which is no public address"):
        read("http://rebind.example/shard-000.tar", Web())
    assert connected == ["93.184.216.34"]
    assert list(answers) == []


def _refuse() -> Any:
    raise ConnectionRefusedError("nobody there")


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in ("93.184.216.34", "10.0.0.7")]
    monkeypatch.setattr(http.socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(DataError, match=r"both.example is 10\.0\.0\.7"):
        exists("http://both.example/a.tar", Web())


@pytest.mark.parametrize("path", ["/slow", "/slow-header"])
def test_byte_by_byte_ends_when_the_whole_time_is_over(path: str, server: str) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match=r"not done after 0.5 s \(cache.web.seconds\)"):
        read(f"{server}{path}", Web(allow_private_hosts=True, seconds=0.5))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/endless", r"sends \d+ bytes or more, 3000000 are allowed \(cache.web.max_gb\)"),
        ("/huge", "sends 1000000000000000 bytes or more"),
        ("/packed", "sends it as gzip, which was not asked for"),
        ("/short", "ended after 10 of 100 bytes"),
    ],
)
def test_bodies_that_are_not_what_they_should_be(path: str, said: str, server: str, tmp_path: Path) -> None:
    cache = ShardCache(folder=str(tmp_path / "shards"), web=INSIDE.model_copy(update={"max_gb": 0.003}))
    with pytest.raises(DataError, match=said):
        cache.local(f"{server}{path}")
    assert not list((tmp_path / "shards").glob("*[!k]"))  # only the lock stays


def test_secrets_of_a_url_are_not_shown(server: str) -> None:
    assert shown("https://me:pw@host:8/a/b.tar?sig=hidden#x") == "https://host:8/a/b.tar?..."
    with pytest.raises(DataError, match=r"\?\.\.\.: ended after") as error:
        read(f"{server}/short?signature=hidden")
    assert "hidden" not in str(error.value)
    assert Server.asked == ["GET /short?signature=hidden"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False), ("0.0.0.0", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("224.0.0.1", False), ("255.255.255.255", False),
        ("::1", False), ("fe80::1%eth0", False), ("fd00::1", False), ("::ffff:10.0.0.1", False), ("ff0e::1", False),
        ("64:ff9b::a00:1", False), ("2002:7f00:1::", False), ("::ffff:8.8.8.8", True), ("64:ff9b::808:808", True),
    ],
)  # fmt: skip
def test_what_is_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_a_member_whose_pax_header_says_another_size_is_refused() -> None:
    """tarfile looks at the pax header after the size of the header itself was found small."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.jpg")
        member.pax_headers = {"size": str(10**11)}
        tar.addfile(member, io.BytesIO(b""))
    raw.seek(0)
    with pytest.raises(tarfile.ReadError, match='"a.jpg" says 100000000000 bytes, 1000000 are read'):
        list(files(raw, max_bytes=1_000_000, allow_packed=False))


@pytest.mark.parametrize(("secure", "port"), [(True, 443), (False, 80)])
def test_the_usual_port_does_not_stand_in_the_host_header(secure: bool, port: int) -> None:
    """A signed url is signed for the name alone."""
    asked = http._Pinned("example.org", port, "192.0.2.1", secure=secure, seconds=1)
    assert asked.default_port == asked.port
