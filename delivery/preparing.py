"""What is sent for an instance: its file as it is, or one without its patient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Protocol

from pydicom.uid import ExplicitVRLittleEndian

from ..dicom.series import SliceRef
from .sending import part10

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ..dicom.deidentify import Deidentifier


class Preparation(Protocol):
    """Makes what is sent.

    Attributes:
        without_patients: Whether it takes out who the patient is. Of a CT series only the slices go then.
    """

    without_patients: bool

    def left_out(self, instance: SliceRef) -> str:
        """Why an instance is not meant to be sent; "": it is."""

    def uid(self, instance: SliceRef) -> str:
        """The SOPInstanceUID that it is sent under."""

    def prepared(self, instance: SliceRef) -> AbstractContextManager[tuple[SliceRef, Path]]:
        """The instance as it is sent, and its file.

        Raises:
            NotDeidentified: It cannot be sent so; the text says why.
            InputUnreadable: Its file is gone or broken.
            OSError: There is no room for a temporary one.
        """


class AsItIs:
    """Every file as it is; see `Preparation` and `sending.part10`."""

    without_patients = False

    def left_out(self, instance: SliceRef) -> str:
        return ""

    def uid(self, instance: SliceRef) -> str:
        return instance.sop_instance_uid

    @contextmanager
    def prepared(self, instance: SliceRef) -> Iterator[tuple[SliceRef, Path]]:
        with part10(instance) as path:
            yield instance, path


AS_IT_IS: Preparation = AsItIs()


class Deidentified:
    """Without its patient; see `Preparation` and `dicom.deidentify`."""

    without_patients = True

    def __init__(self, deidentifier: Deidentifier) -> None:
        self._make = deidentifier

    def left_out(self, instance: SliceRef) -> str:
        from ..dicom.deidentify import PICTURES

        return "its pictures show the patient's data" if instance.sop_class_uid in PICTURES else ""

    def uid(self, instance: SliceRef) -> str:
        return self._make.pseudonyms.uid(instance.sop_instance_uid)

    @contextmanager
    def prepared(self, instance: SliceRef) -> Iterator[tuple[SliceRef, Path]]:
        content = self._make.encoded(instance)
        with NamedTemporaryFile(suffix=".dcm") as temporary:
            temporary.write(content)
            temporary.flush()
            path = Path(temporary.name)
            yield (
                replace(
                    instance,
                    path=path,
                    member=None,
                    sop_instance_uid=self.uid(instance),
                    transfer_syntax_uid=str(ExplicitVRLittleEndian),
                ),
                path,
            )


def prepared_with(key: bytes | None) -> Preparation:
    """What is sent: everything as it is, or with a key everything without its patient."""
    if key is None:
        return AS_IT_IS
    from ..pipeline.hand_over import deidentifier

    return Deidentified(deidentifier(key))
