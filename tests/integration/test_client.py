"""ctl.client against a port that loses what comes while its VM wakes up: a change is asked for once, and surely."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from manager_vm.ctl.client import Client
from manager_vm.errors import StateError, UnreachableError
from manager_vm.wire import admin, framing
from manager_vm.wire.admin import Reply, Request
from tests.integration.conftest import short_directory


class Forgetful:
    """Answers at ``path`` but loses the first ``lost`` requests; ``verbs``: what was asked and not lost."""

    def __init__(self, path: Path, lost: int) -> None:
        self.verbs: list[str] = []
        self._lost = lost
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            decoder = framing.Decoder(admin.MAX_BODY)
            while data := connection.recv(65536):
                for frame in decoder.feed(data):
                    request = admin.from_frame(frame)
                    assert isinstance(request, Request)
                    self._lost -= 1
                    if self._lost < 0:
                        self.verbs.append(request.verb)
                        error = StateError("no status here") if request.verb == "status" else None
                        reply = Reply(request.id, error=error) if error else Reply(request.id, "done")
                        connection.sendall(framing.encode(admin.to_frame(reply)))


@pytest.fixture
def path() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory / "port.sock"


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_manager_is_reached_before_it_is_asked_for_a_change(path: Path, lost: int) -> None:
    with closing(Forgetful(path, lost)) as port, Client.connect(path, 10.0) as client:
        client.reach()
        assert client.call("change") == "done"
        assert port.verbs.count("change") == 1


def test_a_manager_that_never_answers_is_named_after_the_timeout(path: Path) -> None:
    port = Forgetful(path, 99)
    with closing(port), Client.connect(path, 0.5) as client, pytest.raises(UnreachableError, match="still starting"):
        client.reach()
