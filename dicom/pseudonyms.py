"""New names for patients and UIDs, by which nobody finds the old ones without the key."""

from __future__ import annotations

import base64
import hashlib
import hmac

from pydicom.config import IGNORE
from pydicom.uid import UID


class Pseudonyms:
    """The same key gives the same new names, another key gives others.

    Args:
        key: Secret, 32 bytes or more.

    >>> one, other = Pseudonyms(b"1" * 32), Pseudonyms(b"2" * 32)
    >>> one.uid("1.2.3") == one.uid("1.2.3") != other.uid("1.2.3")
    True
    >>> one.uid("1.2.840.10008.5.1.4.1.1.2"), one.uid(""), one.patient("")
    ('1.2.840.10008.5.1.4.1.1.2', '', '')
    >>> one.uid("1.2.840.10008.5.1.4.1.1.2.4711")[:5]
    '2.25.'
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def _digest(self, kind: str, value: str) -> bytes:
        message = f"deepcac2 {kind}\0{value}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key, message, hashlib.sha256).digest()

    def uid(self, uid: str) -> str:
        """The new UID; those that DICOM itself has given (SOP classes and the like), and none, stay.

        It is below 2.25, from 122 bits of an HMAC-SHA-256, in the form of a UUID of version 8 (PS3.5 B.2,
        RFC 9562 5.8).
        """
        uid = uid.strip(" \0")
        if not uid or UID(uid, IGNORE).name != uid:  # it is in DICOM's list
            return uid
        number = int.from_bytes(self._digest("uid", uid)[:16], "big")
        number = number & ~(0xF << 76) | 8 << 76
        number = number & ~(0x3 << 62) | 2 << 62
        return f"2.25.{number}"

    def patient(self, patient_id: str) -> str:
        """The new PatientID, from 80 bits of an HMAC-SHA-256; none stays none."""
        if not patient_id:
            return ""
        return "P-" + base64.b32encode(self._digest("patient", patient_id)[:10]).decode("ascii")
