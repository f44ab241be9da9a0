"""The cable of the fault suite does what it says: else the faults would not be what they are called."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.real.tcp_proxy import Cable


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(65536):
                sock.sendall(data)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threading.Thread(target=answer, args=(sock,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.fixture
def cable(echo: tuple[str, int]) -> Iterator[Cable]:
    with Cable(echo) as made:
        yield made


@pytest.fixture
def client(cable: Cable) -> Iterator[socket.socket]:
    with socket.create_connection(cable.address, timeout=5) as sock:
        yield sock


def ask(sock: socket.socket, data: bytes = b"ping") -> bytes:
    sock.sendall(data)
    return sock.recv(65536)


def silent(sock: socket.socket) -> bool:
    sock.settimeout(0.3)
    try:
        return sock.recv(1) is None
    except TimeoutError:
        return True
    finally:
        sock.settimeout(5)


def test_it_forwards_both_ways(cable: Cable, client: socket.socket) -> None:
    assert ask(client) == b"ping"
    assert cable.moved["there"] == 4


def test_what_is_held_comes_later(cable: Cable, client: socket.socket) -> None:
    ask(client)
    cable.hold()
    client.sendall(b"later")
    assert silent(client)
    cable.up()
    assert client.recv(16) == b"later"


def test_a_black_hole_answers_nobody_and_opens_again(cable: Cable, client: socket.socket) -> None:
    ask(client)
    cable.swallow()
    client.sendall(b"later")
    assert silent(client)
    with pytest.raises(TimeoutError):
        socket.create_connection(cable.address, timeout=0.5)
    cable.up()
    assert client.recv(16) == b"later"
    with socket.create_connection(cable.address, timeout=5) as again:
        assert ask(again) == b"ping"


def test_one_direction_is_swallowed_and_nobody_is_told(cable: Cable, client: socket.socket) -> None:
    ask(client)
    cable.drop("back")
    client.sendall(b"lost")
    assert silent(client)
    cable.up()
    assert ask(client, b"heard") == b"heard"


def test_a_reset_is_a_reset_and_the_next_connection_works(cable: Cable, client: socket.socket) -> None:
    ask(client)
    cable.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with socket.create_connection(cable.address, timeout=5) as again:
        assert ask(again) == b"ping"


def test_one_that_is_down_refuses_and_comes_back_at_the_same_address(cable: Cable, client: socket.socket) -> None:
    ask(client)
    cable.down()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(cable.address, timeout=5)
    cable.up()
    with socket.create_connection(cable.address, timeout=5) as again:
        assert ask(again) == b"ping"


def test_the_end_of_a_connection_is_passed_on(client: socket.socket) -> None:
    ask(client)
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""


def test_a_rate_is_kept(cable: Cable, client: socket.socket) -> None:
    cable.limit(8 * 100_000)  # each way: there and back are two times 0.2 s
    begun, got = time.monotonic(), 0
    client.sendall(b"x" * 20_000)
    while got < 20_000:
        got += len(client.recv(65536))
    assert time.monotonic() - begun > 0.2
