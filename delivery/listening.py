"""The DICOM side of a listening node: a storage SCP with C-ECHO, on pynetdicom.

Everything here is hostile until shown otherwise. Who may call is looked at before a byte is read; what a
caller sends is limited in size, time and rate before it is parsed; what is parsed goes through the limits of
`dicom.files`.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import Verification
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from ..errors import InputError
from . import commitment
from .inbox import FAILED, NO_ROOM, SOP_CLASSES, SUCCESS, Commitment, Inbox
from .sending import check_title
from .transfer import Transfer

log = logging.getLogger(__name__)

SYNTAXES = (
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLosslessSV1, JPEGLossless, JPEGLSLossless,
    JPEG2000Lossless, RLELossless, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, JPEGBaseline8Bit,
    JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000,
)  # fmt: skip
"""Transfer syntaxes that the reader decodes, the best first."""
_PDU = 1 << 17
"""Bytes of a PDU that we announce to take; chosen: four of them make a slice of 512²."""
_DATA, _RELEASE = 0x04, 0x05
"""Types of PDUs (PS3.8 tables 9-22 and 9-24): P-DATA-TF and A-RELEASE-RQ."""
_LARGEST_PDU = 1 << 20
"""Bytes of a PDU that are read at most, of whatever kind; a request for an association with 128 contexts of
all transfer syntaxes has some 60 kB."""
_BLOCK = 1 << 16
_AT_ONCE: int | None = getattr(socket, "TCP_QUICKACK", None)
"""Linux, tcp(7): acknowledge at once. A sender with Nagle's algorithm holds the last part of each instance
back until then, 40 ms. The kernel forgets it, so it is said again."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Somebody who may send.

    Attributes:
        aet: Calling AE title; ``*``: any.
        address: Its address, or those of its network, such as ``10.1.2.0/24``.
        port: Where it listens for reports of storage commitment; 0: it gets none.
    """

    aet: str
    address: str
    port: int = 0

    def __post_init__(self) -> None:
        if self.aet != "*":
            check_title(self.aet, "peers: aet")
        if not 0 <= self.port <= 65535:
            raise InputError("peers: port: a number from 0 to 65535")
        try:
            ipaddress.ip_network(self.address)
        except ValueError:
            raise InputError(
                f"peers: {self.address!r} is no address and no network; give one such as 10.1.2.3 or "
                "10.1.2.0/24"
            ) from None

    def calls_from(self, host: str) -> bool:
        """Whether an address is one of its own."""
        try:
            address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(host.split("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return address in ipaddress.ip_network(self.address)


THIS_MACHINE = (Peer(aet="*", address="127.0.0.0/8"), Peer(aet="*", address="::1"))
"""Who may send where nobody is named."""


@dataclass(frozen=True, kw_only=True)
class Listen:
    """How to listen.

    Attributes:
        aet: Own AE title; callers have to know it.
        host: Address to listen at; ``0.0.0.0``: every one of this machine.
        port: 104 is DICOM's own, for which a system wants rights; 11112 the one registered beside it.
        peers: Who may send; empty: this machine alone.
        certificate, key: PEM files of the certificate to show and its key; "": no TLS. The key may lie in the
            first one.
        ca: PEM file with the CAs whose certificates callers have to show; "": they need none.
        associations: That are open at once; more are turned away for the moment.
        idle: Seconds after which a silent caller is cut off; also the longest time for one PDU.
        held_mb: Megabytes (10⁶ bytes) that are in memory of all that is being received.
        rate_mb: Megabytes a second that are taken from one association; 0: any.
        commitment: Whether storage commitment is offered, to peers with a `Peer.port`.
    """

    aet: str = "DEEPCAC2"
    host: str = "127.0.0.1"
    port: int = 11112
    peers: tuple[Peer, ...] = ()
    certificate: str = ""
    key: str = ""
    ca: str = ""
    associations: int = 20
    idle: float = 60.0
    held_mb: float = 1024.0
    rate_mb: float = 0.0
    commitment: bool = False

    def __post_init__(self) -> None:
        check_title(self.aet, "aet")
        if not 0 <= self.port <= 65535:
            raise InputError("port: a number from 0 to 65535")
        if min(self.associations, self.idle, self.held_mb) <= 0 or self.rate_mb < 0:
            raise InputError("associations, idle and held_mb must be above 0, rate_mb not below")
        if self.commitment and not any(peer.port for peer in self.peers):
            raise InputError("commitment: name the port of peers who shall get reports (peers: port)")
        if (self.key or self.ca) and not self.certificate:
            raise InputError("key and ca are about TLS; give a certificate, too")


class _Socket(AssociationSocket):  # type: ignore[misc]
    """A socket that reads no PDU of any length, and waits for none for ever."""

    idle = 60.0

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes.

        Raises:
            OSError: They are too many, or do not come in time.
        """
        if nr_bytes > _LARGEST_PDU:
            raise OSError("the PDU is too large")
        got, until = bytearray(), time.monotonic() + self.idle
        while len(got) < nr_bytes:
            left = until - time.monotonic()
            if left <= 0 or self.socket is None:
                raise TimeoutError("the PDU does not come")
            self.socket.settimeout(left)
            if _AT_ONCE is not None:
                self.socket.setsockopt(socket.IPPROTO_TCP, _AT_ONCE, 1)
            part = self.socket.recv(min(_BLOCK, nr_bytes - len(got)))
            if not part:
                break
            got += part
        return got


class _Handler(RequestHandler):  # type: ignore[misc]
    def _create_association(self) -> Any:
        association = super()._create_association()
        association.dul.socket.__class__ = _Socket
        association.dul.socket.idle = association.ae.network_timeout
        take = association.dimse.receive_primitive

        def guarded(primitive: Any) -> None:
            """What is no message of DIMSE ends the association and not its thread."""
            try:
                take(primitive)
            except Exception as error:
                log.warning("cut off a caller: no message of DIMSE (%s)", type(error).__name__)
                association.dul.event_queue.put("Evt19")  # PS3.8 table 9-10: an invalid PDU

        association.dimse.receive_primitive = guarded
        return association


class _Server(ThreadedAssociationServer):  # type: ignore[misc]
    """Looks at who calls before a thread or a handshake is spent on them."""

    daemon_threads = True
    request_queue_size = 128
    owner: Listener

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, request_handler=_Handler, **options)

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection; TLS waits until a thread of its own does it."""
        connection, address = self.socket.accept()
        connection.settimeout(self.ae.network_timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether this address may call, and there is room for it."""
        if not any(peer.calls_from(client_address[0]) for peer in self.owner.peers):
            self.owner.turned_away("address", client_address[0])
            return False
        if len(self.active_associations) >= 2 * self.ae.maximum_associations:
            self.owner.turned_away("connections", client_address[0])
            return False
        return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Begin the association."""
        if self.ssl_context is not None:
            try:
                request = self.ssl_context.wrap_socket(request, server_side=True)
            except (OSError, ValueError):
                self.owner.turned_away("tls", client_address[0])
                self.shutdown_request(request)
                return
        super().process_request_thread(request, client_address)


def server_tls(listen: Listen) -> ssl.SSLContext | None:
    """How TLS is done with callers; None: without.

    Raises:
        InputError: A file cannot be read.
    """
    if not listen.certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(listen.certificate, listen.key or None, password=lambda: b"")
        if listen.ca:
            context.load_verify_locations(cafile=listen.ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:
        raise InputError(
            "certificate, key or ca: they do not hold certificates and a key without a password, as PEM "
            f"({getattr(error, 'strerror', None) or type(error).__name__})"
        ) from None
    return context


class Listener:
    """Listens until it is stopped.

    Args:
        listen: How.
        inbox: Where instances go.

    Attributes:
        counts: What was received and turned away, by kind, since the start.

    Raises:
        InputError: It cannot listen there.
    """

    def __init__(self, listen: Listen, inbox: Inbox) -> None:
        self.listen, self._inbox = listen, inbox
        self.peers: Sequence[Peer] = listen.peers or THIS_MACHINE
        self.counts: Counter[str] = Counter()
        self._transfers: dict[int, Transfer] = {}
        self._guard = threading.Lock()
        self._closing = False
        _config.LOG_HANDLER_LEVEL = "none"  # of the whole library: it would put every PDU into words
        entity = AE(ae_title=listen.aet)
        entity.maximum_associations = listen.associations
        entity.maximum_pdu_size = _PDU
        entity.require_called_aet = True
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = listen.idle
        entity.add_supported_context(Verification)
        for sop_class in SOP_CLASSES:
            entity.add_supported_context(sop_class, list(SYNTAXES))
        if listen.commitment:
            entity.add_supported_context(commitment.SERVICE)
        handlers = [
            (evt.EVT_N_ACTION, self._asked),
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_PDU_RECV, self._received),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, self._echo),
        ]
        try:
            self._server: Any = entity.make_server(
                (listen.host, listen.port),
                ssl_context=server_tls(listen),
                evt_handlers=handlers,
                server_class=_Server,
            )
        except OSError as error:
            raise InputError(
                f"cannot listen at {listen.host} port {listen.port}: {error.strerror or error}; give another "
                "host or port"
            ) from None
        self._server.owner = self
        entity._servers.append(self._server)  # its `shutdown` takes it from there
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="listener", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no association any more, and end those that are open."""
        self._closing = True
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort()
        self._thread.join()
        self.sweep(everything=True)

    def turned_away(self, why: str, host: str) -> None:
        """Count a caller that was turned away."""
        self.counts[f"turned_away_{why}"] += 1
        log.warning("turned away a call from %s (%s)", host, why)

    def _requested(self, event: Any) -> None:
        title = str(event.assoc.requestor.primitive.calling_ae_title).strip()
        host = str(event.assoc.requestor.address)
        if self._closing or not any(p.aet in ("*", title) and p.calls_from(host) for p in self.peers):
            self.turned_away("title", host)
            event.assoc.acse.send_reject(0x01, 0x01, 0x03)
            event.assoc.is_rejected = True
            event.assoc.kill()

    def _transfer(self, association: Any) -> Transfer:
        with self._guard:
            return self._transfers.setdefault(id(association), Transfer(association=association))

    def _received(self, event: Any) -> None:
        """Count what comes before anybody has parsed it, and hang up where it is too much.

        That a caller wants to end is noted before it is told so: afterwards it never sends again.
        """
        if event.pdu.pdu_type == _RELEASE:
            with self._guard:
                ending = self._transfers.pop(id(event.assoc), None)
            if ending is not None:
                self._inbox.ended(ending.endings(True))
        if event.pdu.pdu_type != _DATA:
            return
        transfer, size = self._transfer(event.assoc), event.pdu.pdu_length
        transfer.held += size
        transfer.bytes += size
        self.counts["bytes"] += size
        with self._guard:
            held = sum(t.held for t in self._transfers.values())
        if transfer.held > self._inbox.limits.instance_mb * 1e6 + _PDU or held > self.listen.held_mb * 1e6:
            self.counts["too_large"] += 1
            transfer.flaw = True
            log.warning("cut off a caller: an instance is larger than it may be, or all are together")
            event.assoc.dul.socket.close()
            return
        transfer.slowed(self.listen.rate_mb)

    def _echo(self, event: Any) -> int:
        self.counts["echoes"] += 1
        return SUCCESS

    def _asked(self, event: Any) -> tuple[int, None]:
        """Note a request for storage commitment, see `commitment`."""
        transfer, request = self._transfer(event.assoc), event.request
        try:
            title = str(event.assoc.requestor.primitive.calling_ae_title).strip()
            host = str(event.assoc.requestor.address)
            ports = (p.port for p in self.peers if p.port and p.aet in ("*", title) and p.calls_from(host))
            port = next(ports, 0)
            if not port or self._closing:
                log.warning("storage commitment: no port is known where %s listens for its report", host)
                return commitment.NOT_AUTHORISED, None
            data = b"" if request.ActionInformation is None else request.ActionInformation.getvalue()
            found = commitment.asked(int(request.ActionTypeID), str(request.RequestedSOPInstanceUID), data)
            if isinstance(found, int):
                log.warning("storage commitment: refused with 0x%04X", found)
                return found, None
            noted = self._inbox.commit(
                Commitment(
                    transaction=found.transaction, title=title, host=host, port=port, images=found.images
                )
            )
            self.counts["commitments"] += noted
            return (SUCCESS if noted else commitment.NO_ROOM), None
        except Exception as error:  # whatever it is: it is told that nothing was promised
            log.error("storage commitment: %s", type(error).__name__)
            return FAILED, None
        finally:
            transfer.held = 0

    def _store(self, event: Any) -> int:
        transfer = self._transfer(event.assoc)
        request = event.request
        try:
            if self._closing:
                return NO_ROOM
            answer = self._inbox.receive(
                [request.DataSet.getbuffer()],
                sop_class=str(request.AffectedSOPClassUID),
                uid=str(request.AffectedSOPInstanceUID),
                syntax=str(event.context.transfer_syntax),
            )
        except Exception as error:  # whatever it is: the sender is told that it has to keep it
            log.error("an instance was not stored: %s", type(error).__name__)
            self.counts["refused"] += 1
            transfer.flaw = True
            return FAILED
        finally:
            transfer.held = 0
        transfer.answered(str(request.AffectedSOPInstanceUID), answer, self._inbox, self.counts)
        return answer.status

    def sweep(self, *, everything: bool = False) -> None:
        """Note how associations ended that are no more."""
        with self._guard:
            over = [
                (key, transfer)
                for key, transfer in self._transfers.items()
                if everything or not transfer.association.is_alive()
            ]
        for key, transfer in over:
            left = getattr(transfer.association.dul.socket, "socket", None)
            if left is not None:
                left.close()
            endings = transfer.endings(bool(transfer.association.is_released))
            if endings:
                self._inbox.ended(endings)
            with self._guard:
                self._transfers.pop(key, None)

    def at_work(self) -> set[str]:
        """The series of which an association that is open has brought something."""
        with self._guard:
            return {uid for t in self._transfers.values() for uid in t.series}

    @property
    def open_associations(self) -> int:
        """How many there are."""
        return len(self._server.active_associations)
