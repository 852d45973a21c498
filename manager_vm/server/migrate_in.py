"""The destination's side of moves: a listener, a thread for each connection, limits first (MIGRATION.md, section 9).

Post-condition of a connection: either the vTPM is PREPARED or further, durable, or nothing of it is here.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress

from manager_vm.errors import ConfigError, MigrationError, RemoteProtocolError, VtpmManagerError
from manager_vm.server import guest_tunnel, peer_link
from manager_vm.server.guest_tunnel import Tunnels
from manager_vm.server.ledger import Ledger
from manager_vm.server.peer_link import PeerLink, Talk
from manager_vm.server.taking import Taking
from manager_vm.store.records import Move
from manager_vm.trust import relocation, standing
from manager_vm.wire.migration import Ahead, Cause, Handover, Offer, Pull

log = logging.getLogger(__name__)

_STRANGERS, _OF_ONE_HOST = 32, 8  # connections without a verified order, of all and of one address
_GREETING = 5.0  # seconds for the first message
_COMMIT = 60.0

Relocations = Callable[[PeerLink, Offer, Callable[[], None]], None]
Pulls = Callable[[PeerLink, Pull | Ahead, Callable[[], None]], None]


class Receiver:
    """The listener. ``arrived`` is told the name of each vTPM that is PREPARED: somebody may want to wire it.

    ``relocations`` gets what a whole manager that wants to come here says, ``tunnels`` what is for a guest's memory,
    ``pulls`` what somebody says who has a ticket, or will have one.
    """

    def __init__(
        self,
        taking: Taking,
        ledger: Ledger,
        where: str,
        arrived: Callable[[str], None],
        relocations: Relocations,
        tunnels: Tunnels,
        pulls: Pulls,
    ) -> None:
        self._taking = taking
        self._ledger = ledger
        self._arrived = arrived
        self._relocations = relocations
        self._tunnels = tunnels
        self._pulls = pulls
        self._strangers: Counter[str] = Counter()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._socket = _listen(where)
        self._thread = threading.Thread(target=self._accept, name="moves", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where it listens, "host:port"."""
        host, port = self._socket.getsockname()[:2]
        return peer_link.join(host, port)

    @property
    def alive(self) -> bool:
        """Whether it still listens."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop listening; what is under way ends as if the network had."""
        self._closing.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in connections.values():
            thread.join()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, (host, *_) = self._socket.accept()
            except OSError:
                time.sleep(0.1)  # no descriptors: it may pass
                continue
            thread = threading.Thread(target=self._serve, args=(connection, host), name="move in", daemon=True)
            with self._lock:
                room = self._strangers.total() < _STRANGERS and self._strangers[host] < _OF_ONE_HOST
                if room:
                    self._strangers[host] += 1
                    self._connections[connection] = thread
            if room:
                thread.start()
            else:
                connection.close()

    def _known(self, host: str) -> None:
        with self._lock:
            self._strangers[host] -= 1
            self._strangers += Counter()  # nothing is kept of hosts that have none

    def _serve(self, connection: socket.socket, host: str) -> None:
        known = ExitStack()  # left when the connection is nobody's any more, or its order is verified
        known.callback(self._known, host)
        try:
            with known, PeerLink(connection) as link:
                self._first(link, known)
        except VtpmManagerError as error:
            log.warning("a move to this manager ended: %s", error)
        except Exception:  # one bad peer must not end the listener
            log.exception("a move to this manager")
        finally:
            with self._lock:
                self._connections.pop(connection, None)

    def _first(self, link: PeerLink, stranger: ExitStack) -> None:
        message = link.receive(_GREETING)
        if isinstance(message, Handover):
            self._words(link, message)
        elif isinstance(message, Pull | Ahead):
            self._pulls(link, message, stranger.close)
        elif isinstance(message, Offer) and relocation.is_order(message.order):
            self._relocations(link, message, stranger.close)
        elif isinstance(message, Offer) and guest_tunnel.is_asked(message):
            with ExitStack() as held:
                self._tunnels.answer(self._taking.incoming(held), link, message, stranger.close)
        elif isinstance(message, Offer):
            self._offered(link, message, stranger)
        else:
            raise RemoteProtocolError(f"a connection began with {type(message).__name__}")

    def _words(self, link: PeerLink, word: Handover) -> None:
        """Of a move that is under way, or over: as long as the other side has something to say."""
        with suppress(MigrationError):  # it has nothing more to say
            while (answer := self._ledger.hear(word)) is not None:
                link.send(answer)
                heard = link.receive(_GREETING)
                if not isinstance(heard, Handover):
                    raise RemoteProtocolError(f"the other end sent {type(heard).__name__}, where a hand-over was due")
                word = heard

    def _offered(self, link: PeerLink, offer: Offer, stranger: ExitStack) -> None:
        if standing.is_standing(offer.order):
            raise MigrationError("nobody here has asked for the vTPM of this standing order", Cause.ORDER.word)
        with ExitStack() as held:
            coming = self._taking.agree(link, offer, held, stranger.close)
            move, prepared = self._taking.receive(coming)
            coming.talk.say(prepared)
            self._await_commit(coming.talk, move)

    def _await_commit(self, talk: Talk, move: Move) -> None:
        """What does not come now comes later, over another connection: the move is durable."""
        wired = threading.Thread(target=self._arrived, args=(move.name,), name="wire", daemon=True)
        wired.start()  # beside: it has a commit of its own
        try:
            answer = self._ledger.hear(talk.expect(Handover, _COMMIT))
            if answer is not None:
                talk.say(answer)
        finally:
            wired.join()


def _listen(where: str) -> socket.socket:
    host, port = peer_link.parse_address(where)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
    except OSError as error:
        raise ConfigError(f"cannot listen for moves at {where}: {error.strerror or error}") from None
