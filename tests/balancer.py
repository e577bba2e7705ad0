"""What stands before several gateways, as small as it can be: asks each whether it takes requests, and sends by turns to those that do."""

import itertools
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from tests.composed import Composed
from tests.platform import free_port

CHECK_SECONDS = 0.25


class Balancer(httpx.BaseTransport):
    """For `httpx.Client(transport=…)`. Only a refused connection is tried elsewhere; what has been sent is never sent again."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = [httpx.URL(url) for url in urls]
        self._transports = [httpx.HTTPTransport() for _ in urls]
        self._turns = itertools.count()
        self._takes = [True for _ in urls]
        self._ended = threading.Event()
        self._checks = threading.Thread(target=self._check, daemon=True)
        self._checks.start()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        turn = next(self._turns)
        order = sorted(range(len(self._urls)), key=lambda n: (not self._takes[n], (n - turn) % len(self._urls)))
        for number in order:
            url = self._urls[number]
            request.url = request.url.copy_with(host=url.host, port=url.port)
            try:
                return self._transports[number].handle_request(request)
            except httpx.ConnectError:
                self._takes[number] = False
        raise httpx.ConnectError("no gateway takes a connection")

    def close(self) -> None:
        self._ended.set()
        self._checks.join(10)
        for transport in self._transports:
            transport.close()

    def _check(self) -> None:
        while not self._ended.wait(CHECK_SECONDS):
            for number, url in enumerate(self._urls):
                try:
                    self._takes[number] = httpx.get(url.join("/healthz"), timeout=5).status_code == 200
                except httpx.TransportError:
                    self._takes[number] = False


@dataclass
class Balanced(Composed):
    """A composed platform with two gateways, at `port` and the one after it."""

    def http(self, key: str | None = None) -> httpx.Client:
        """Each client stands behind a balancer of its own."""
        plain = super().http(key)
        urls = [f"http://127.0.0.1:{self.port + number}" for number in range(2)]
        return httpx.Client(base_url=urls[0], headers=plain.headers, timeout=plain.timeout, transport=Balancer(urls))


def first_of_two_free_ports() -> int:
    """The one after it is free too."""
    while True:
        port = free_port()
        try:
            socket.create_server(("127.0.0.1", port + 1)).close()
        except OSError:
            continue
        return port
