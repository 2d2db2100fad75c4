"""Storage commitment (PS3.4 annex J): who has sent images asks whether they are safe, and is told later.

A request is noted in the database of the inbox before it is answered, so that a kill loses none. The report
goes over an association of our own to the one who asked. Before an image is reported as safe its file is read
again and compared with what was received.
"""

from __future__ import annotations

import hashlib
import io
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pydicom
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from ..dicom.files import DERIVED, HEAD_BYTES, Upto, read_dicom, read_slice
from ..dicom.headers import quiet_pydicom, text
from ..dicom.series import SliceRef
from ..errors import InputUnreadable

if TYPE_CHECKING:
    from .inbox import Commitment, Inbox

log = logging.getLogger(__name__)

SERVICE, INSTANCE = str(StorageCommitmentPushModel), str(StorageCommitmentPushModelInstance)
"""SOP class, and the one instance that requests are made to (PS3.4 J.3.5)."""

SUCCESS, NOT_UNDERSTOOD, NO_INSTANCE, NO_ACTION, NOT_AUTHORISED, NO_ROOM = (
    *(0x0000, 0x0115, 0x0112),
    *(0x0123, 0x0124, 0x0213),
)
"""Statuses of an N-ACTION (PS3.7 10.1.4.1.10), *invalid argument value* among them."""
FAILED, NO_SUCH_INSTANCE, OTHER_CLASS = 0x0110, 0x0112, 0x0119
"""Reasons of a failure in a report (PS3.3 C.14.1.1)."""

_MOST = 20_000
"""Images of a request; chosen: a study of several series has 5000."""
_LARGEST = 8 << 20
"""Bytes of a request that are parsed; chosen: an image takes some 150."""
_TIMEOUT = 30.0
_LONGEST_WAIT = 300.0
GIVEN_UP = 86_400.0
"""Seconds after which a report that nobody takes is given up. Chosen."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What somebody wants to know.

    Attributes:
        transaction: TransactionUID.
        images: SOPClassUID and SOPInstanceUID of each.
    """

    transaction: str
    images: tuple[tuple[str, str], ...]


def asked(action: int, instance: str, data: bytes) -> Asked | int:
    """A request, or the status that it is answered with.

    Args:
        action: Action Type ID.
        instance: SOP instance that it is made to.
        data: Action Information, encoded, little endian.
    """
    if instance != INSTANCE:
        return NO_INSTANCE
    if action != 1:
        return NO_ACTION
    if len(data) > _LARGEST:
        return NO_ROOM
    try:
        with quiet_pydicom():
            ds = read_dicom(
                io.BytesIO(data[HEAD_BYTES:]),
                data[:HEAD_BYTES],
                upto=Upto.END,
                packed_size=len(data),
                limits=DERIVED,
            )
            transaction = text(ds, "TransactionUID")
            images = tuple(
                (text(item, "ReferencedSOPClassUID"), text(item, "ReferencedSOPInstanceUID"))
                for item in ds.get("ReferencedSOPSequence") or ()
            )
    except (InputUnreadable, AttributeError, TypeError, ValueError):
        return NOT_UNDERSTOOD
    if not transaction or not images or not all(a and b for a, b in images):
        return NOT_UNDERSTOOD
    return NO_ROOM if len(images) > _MOST else Asked(transaction=transaction, images=images)


def report(inbox: Inbox, commitment: Commitment) -> tuple[int, pydicom.Dataset]:
    """What is told: event type (1: all are safe, 2: some are not) and information (PS3.4 table J.3-2)."""
    safe: list[pydicom.Dataset] = []
    failed: list[pydicom.Dataset] = []
    for sop_class, uid in commitment.images:
        reason = _failure(inbox, sop_class, uid)
        item = pydicom.Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        if reason:
            item.FailureReason = reason
        (failed if reason else safe).append(item)
    told = pydicom.Dataset()
    told.TransactionUID = commitment.transaction
    if safe:
        told.ReferencedSOPSequence = safe
    if failed:
        told.FailedSOPSequence = failed
    return (2 if failed else 1), told


def _failure(inbox: Inbox, sop_class: str, uid: str) -> int:
    """Why an image is not safe here; 0: it is."""
    stored = inbox.stored(uid)
    if stored is None:
        return NO_SUCH_INSTANCE
    path, size, sha256 = stored
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            file.seek(-size, io.SEEK_END)  # its data set, before which is what we have put there
            while block := file.read(1 << 20):
                digest.update(block)
        with quiet_pydicom():
            stored_class = text(read_slice(SliceRef(path=path), tags=["SOPClassUID"]), "SOPClassUID")
    except FileNotFoundError:
        return NO_SUCH_INSTANCE
    except (OSError, InputUnreadable):
        return FAILED
    if digest.hexdigest() != sha256:
        log.error("instance %s is not on the disk as it was received", uid)
        return FAILED
    return 0 if stored_class == sop_class else OTHER_CLASS


class Committer(threading.Thread):
    """Tells those who asked, for as long as the node is at work.

    Args:
        inbox: Where requests are noted and images lie.
        title: Our own AE title.
        tls: How TLS is done with those who are told; None: without.
        stopping, wait: Whether to end, and to wait no longer than until then.
    """

    def __init__(
        self,
        inbox: Inbox,
        title: str,
        *,
        tls: ssl.SSLContext | None,
        stopping: Callable[[], bool],
        wait: Callable[[float], None],
    ) -> None:
        super().__init__(name="committer", daemon=True)
        self._inbox, self._title, self._tls = inbox, title, tls
        self._stopping, self._wait = stopping, wait

    def run(self) -> None:
        """Tell until the node stops."""
        while not self._stopping():
            try:
                busy = self.tell_some()
            except Exception as error:  # whatever it is, the next turn may go well
                log.error("a storage commitment could not be reported: %s", type(error).__name__)
                busy = False
            if not busy:
                self._wait(0.5)

    def tell_some(self) -> bool:
        """Tell what is due; whether there was anything."""
        for transaction in self._inbox.give_up_commitments(GIVEN_UP):
            log.error("storage commitment %s: given up, nobody takes its report", transaction)
        due = self._inbox.commitments_due()
        for commitment in due:
            if self._stopping():
                break
            try:
                kind, told = report(self._inbox, commitment)
                problem = self._tell(commitment, kind, told)
            except Exception as error:  # nobody else's report waits for it
                problem = type(error).__name__
            if problem:
                log.warning("storage commitment %s: not reported: %s", commitment.transaction, problem)
                wait = min(2.0 ** min(commitment.tries, 20), _LONGEST_WAIT)
                self._inbox.commitment_not_told(commitment, wait)
            else:
                log.info("storage commitment %s: reported, event %d", commitment.transaction, kind)
                self._inbox.commitment_told(commitment)
        return bool(due)

    def _tell(self, commitment: Commitment, kind: int, told: pydicom.Dataset) -> str:
        """Send a report; why it was not taken, or ""."""
        entity = AE(ae_title=self._title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _TIMEOUT
        entity.connection_timeout = _TIMEOUT
        entity.add_requested_context(SERVICE)
        opened: list[socket.socket] = []
        association = entity.associate(
            commitment.host,
            commitment.port,
            ae_title=commitment.title,
            # we are the provider though we call (PS3.4 J.3.3)
            ext_neg=[build_role(SERVICE, scp_role=True)],
            tls_args=None if self._tls is None else (self._tls, commitment.host),
            evt_handlers=[(evt.EVT_CONN_OPEN, lambda event: opened.append(event.assoc.dul.socket.socket))],
        )
        try:
            if not association.is_established:
                return "no association"
            status, _ = association.send_n_event_report(told, kind, SERVICE, INSTANCE)
            if "Status" not in status:
                return "no answer"
            association.release()
            return "" if status.Status == SUCCESS else f"refused with 0x{status.Status:04X}"
        finally:
            if association.is_alive():
                association.abort()
            for one in opened:
                with suppress(OSError):
                    one.close()
