"""GET over http and https from public addresses only, with a cap on bytes and on the time of the whole transfer.

A name is resolved once, every address of it is checked, and the connection goes to the address that was checked: an
answer that changes between the check and the use changes nothing. Redirects come through the same door.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from pydantic import Field

from vlp.data.schema import DataError
from vlp.registry import Part

_CHUNK = 1 << 20
_IN_A_PATH = "/%:@!$&'()*+,;=~"  # what RFC 3986 lets stand in one as it is
_REDIRECTS = 5
_CONNECT = 30.0  # seconds for one connection
_MOVED, _GONE, _NO_HEAD = (301, 302, 303, 307, 308), (404, 410), (400, 403, 405, 501)
_HOLDS_IPV4 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))  # in their last 32 bits
_FAULTS = (OSError, http.client.HTTPException, ValueError)


class Web(Part):
    """How far urls of http and https are trusted."""

    allow_private_hosts: bool = Field(
        False, description="also read from this machine and networks inside: loopback, private, link-local"
    )
    max_gb: float = Field(20.0, gt=0, description="most that one url may send")
    seconds: float = Field(3600.0, gt=0, description="longest that one url may take, redirects and all")


class Answer(NamedTuple):
    """An open answer, and the length that the server says it has, if it does."""

    response: http.client.HTTPResponse
    length: int | None


def shown(url: str) -> str:
    """The url without user, password and query, which may be secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{url.partition('://')[0]}://..."
    query = "..." if parts.query else ""
    return SplitResult(parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, "").geturl()


def exists(url: str, web: Web) -> bool:
    """Whether the url can be read; False where the server says that there is nothing."""
    for method in ("HEAD", "GET"):
        with _opened(url, web, method) as answer:
            status = answer.response.status
            if status == 200 or status in _GONE:
                return status == 200
            if method == "GET" or status not in _NO_HEAD:
                raise DataError(f"{shown(url)}: the server answers {status} {answer.response.reason}")
    raise AssertionError("the loop ends with GET")


def content(url: str, web: Web, *, max_bytes: int | None = None) -> Iterator[bytes]:
    """The bytes behind a url; FileNotFoundError where there are none, DataError for anything that is not wanted."""
    limit = int(web.max_gb * 1e9) if max_bytes is None else max_bytes
    with _opened(url, web, "GET") as answer:
        response, status = answer.response, answer.response.status
        if status in _GONE:
            raise FileNotFoundError(shown(url))
        if status != 200:
            raise DataError(f"{shown(url)}: the server answers {status} {response.reason}")
        if (coding := response.getheader("Content-Encoding", "identity")) != "identity":
            raise DataError(f"{shown(url)}: the server sends it as {coding}, which was not asked for")
        if answer.length is not None and answer.length > limit:
            raise _too_large(url, answer.length, limit)
        got = 0
        while chunk := response.read1(_CHUNK):
            got += len(chunk)
            if got > limit:
                raise _too_large(url, got, limit)
            yield chunk
        if answer.length is not None and got != answer.length:
            raise DataError(f"{shown(url)}: ended after {got} of {answer.length} bytes")


def _too_large(url: str, size: int, limit: int) -> DataError:
    return DataError(f"{shown(url)}: sends {size} bytes or more, {limit} are allowed (cache.web.max_gb)")


@contextlib.contextmanager
def _opened(url: str, web: Web, method: str) -> Iterator[Answer]:
    """The answer after redirects, or DataError; one clock runs over all of it."""
    clock, first = _Clock(web.seconds), url
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(_REDIRECTS + 1):
                answer = stack.enter_context(_asked(url, web, method, clock))
                if answer.response.status not in _MOVED:
                    break
                url = _moved(url, answer.response.getheader("Location", ""))
            else:
                raise DataError(f"{shown(first)}: more than {_REDIRECTS} redirects")
            yield answer
        clock.check()
    except FileNotFoundError:
        raise
    except _FAULTS as error:
        if clock.over:
            late = f"not done after {web.seconds:g} s (cache.web.seconds)"
            raise DataError(f"{shown(first)}: {late}; is the server slow, or does it send byte by byte?") from None
        if isinstance(error, DataError):
            raise
        raise DataError(f"{shown(first)}: not reachable: {error}") from error


class _Clock:
    """Ends the connection it watches when the time is over: a server that drips bytes resets no timeout of a read."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(self.until - time.monotonic(), 0.01)

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.until

    def check(self) -> None:
        """OSError when the time is over."""
        if self.over:
            raise TimeoutError("time is over")

    @contextlib.contextmanager
    def watching(self, connection: _Pinned) -> Iterator[None]:
        timer = threading.Timer(self.left, connection.end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class _Pinned(http.client.HTTPConnection):
    """A connection to one address, whatever the name resolves to by now."""

    def __init__(self, host: str, port: int, address: str, *, secure: bool, seconds: float) -> None:
        super().__init__(host, port, timeout=min(_CONNECT, seconds))
        if secure:  # or the port would stand in the Host header, which signed urls do not expect
            self.default_port = http.client.HTTPS_PORT
        self.address, self.secure = address, secure
        self.wire: socket.socket | None = None  # http.client forgets its own when the answer is to end the connection

    def connect(self) -> None:
        self.sock = self.wire = socket.create_connection((self.address, self.port), timeout=self.timeout)
        if self.secure:
            context = ssl.create_default_context()
            secured = context.wrap_socket(self.wire, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = self.wire = secured
            secured.do_handshake()

    def end(self) -> None:
        """Stops whatever waits for the other side."""
        if self.wire is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.wire, socket.SHUT_RDWR)


@contextlib.contextmanager
def _asked(url: str, web: Web, method: str, clock: _Clock) -> Iterator[Answer]:
    """One answer, redirects not followed."""
    clock.check()
    parts = checked(url)
    secure, host = parts.scheme == "https", str(parts.hostname)
    port = parts.port or (443 if secure else 80)
    connection = _Pinned(host, port, _address(host, port, web), secure=secure, seconds=clock.left)
    target = quote(parts.path or "/", safe=_IN_A_PATH) + (f"?{parts.query}" if parts.query else "")
    with clock.watching(connection), contextlib.closing(connection):
        connection.request(method, target, headers={"Accept-Encoding": "identity"})
        with connection.getresponse() as response:
            length = response.getheader("Content-Length", "")
            yield Answer(response, int(length) if length.isdigit() else None)


def checked(url: str) -> SplitResult:
    """The parts of a url of http or https; DataError for anything else, and for credentials in it."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises for what is no number
    except ValueError as error:
        raise DataError(f"{shown(url)}: not a url: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DataError(f"{shown(url)}: not a url of http or https")
    if "@" in parts.netloc:
        raise DataError(f"{shown(url)}: user and password in a url end in logs; use s3, or a url that is signed")
    return parts


def _moved(url: str, location: str) -> str:
    """Where a redirect leads; DataError for what is not http, and from https to what anybody can read."""
    target = urljoin(url, location)
    if not location or checked(target).scheme == "http" != urlsplit(url).scheme:
        raise DataError(f"{shown(url)}: redirects to {shown(target)}, which is not followed")
    return target


def _address(host: str, port: int, web: Web) -> str:
    """The first address of a host, once all of them are known to be public."""
    found = [str(item[4][0]) for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    inside = [address for address in found if not is_public(address)]
    if inside and not web.allow_private_hosts:
        raise DataError(
            f"{host} is {inside[0]}, which is no public address: a shard list may not reach into this network; "
            "set cache.web.allow_private_hosts: true if you trust the list"
        )
    return found[0]


def is_public(address: str) -> bool:
    """Whether an address is of the public internet; one that carries another is what that is."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or ip.sixtofour
        if any(ip in network for network in _HOLDS_IPV4):
            carried = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = carried or ip
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
