"""The floor: a vTPM that moves between two bare swtpms, in the clear or through TLS; no order, no proof, no disk."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import struct
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from manager_vm.vtpm.sandbox import Sandbox
from manager_vm.vtpm.swtpm import StateBlobs, Swtpm
from manager_vm.wire import tpm
from tests.bench.migrate.roads import Road

_LENGTHS = struct.Struct(">III")
_ASK = tpm.get_random(8)


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move took, in seconds. ``apart``, ``apart_total``: of these, waiting for a disk or a hardware TPM."""

    downtime: float
    total: float
    apart: float = 0.0
    apart_total: float = 0.0


class Plain:
    """TCP as it is."""

    def client(self, connection: socket.socket) -> socket.socket:
        """The source's end."""
        return connection

    def server(self, connection: socket.socket) -> socket.socket:
        """The destination's end."""
        return connection


class Tls:
    """TLS 1.3; both ends show a certificate of one CA."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "both.pem"
            path.write_bytes(_certificate())
            self._client = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(path))
            self._server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(path))
            for context in (self._client, self._server):
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.load_cert_chain(path)
            self._server.verify_mode = ssl.CERT_REQUIRED

    def client(self, connection: socket.socket) -> socket.socket:
        """The source's end."""
        return self._client.wrap_socket(connection, server_hostname="destination")

    def server(self, connection: socket.socket) -> socket.socket:
        """The destination's end."""
        return self._server.wrap_socket(connection, server_side=True)


class Bare:
    """A vTPM that moves from one swtpm to the next. ``kind``: how the state is carried, ``road``: over what."""

    def __init__(self, kind: type[Plain] | type[Tls], road: Road) -> None:
        self._kind = kind()
        self._directory = tempfile.TemporaryDirectory(prefix="vt")
        self._road = road
        self._listener = road.listen()
        self._way = road.way(self._listener)
        self._number = 0
        self._here = self._spawn()
        self._here.init()
        self._here.execute(tpm.startup(), deadline=60.0)

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_: object) -> None:
        self._way.close()
        self._listener.close()
        self._here.close()
        self._directory.cleanup()

    def move(self) -> Moved:
        """There; the next one from there."""
        began = time.monotonic()
        there = self._spawn()
        ready, done = threading.Event(), threading.Event()
        receiver = threading.Thread(target=self._receive, args=(there, ready, done))
        receiver.start()
        with self._kind.client(self._road.connect(self._way.address)) as link:
            ready.wait()
            stopped = time.monotonic()
            blobs = self._here.get_state()
            parts = (blobs.permanent, blobs.volatile, blobs.savestate)
            link.sendall(_LENGTHS.pack(*map(len, parts)) + b"".join(parts))
            done.wait()
            ended = time.monotonic()
        receiver.join()
        self._here.close()
        self._here = there
        return Moved(ended - stopped, time.monotonic() - began)

    def _receive(self, there: Swtpm, ready: threading.Event, done: threading.Event) -> None:
        connection, _ = self._listener.accept()
        with self._kind.server(connection) as link:
            ready.set()
            lengths = _LENGTHS.unpack(_exactly(link, _LENGTHS.size))
            permanent, volatile, savestate = (_exactly(link, length) for length in lengths)
            there.set_state(StateBlobs(permanent, volatile, savestate))
            there.init()
            there.execute(_ASK, deadline=60.0)
            done.set()

    def _spawn(self) -> Swtpm:
        self._number += 1
        directory = Path(self._directory.name) / str(self._number)
        directory.mkdir(mode=0o700)
        return Swtpm.spawn(directory, os.urandom(32), Sandbox(uid=None, memory_limit=256 << 20), binary="swtpm")


def _exactly(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = link.recv(size - len(data))
        if not piece:
            raise OSError("the other end left")
        data += piece
    return data


def _certificate() -> bytes:
    """Key and self-signed certificate, PEM: it is its own CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "destination")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("destination")]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    made = builder.sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + made.public_bytes(serialization.Encoding.PEM)
