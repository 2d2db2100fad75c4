"""Every error this project raises on purpose.

::

    DeepCACError                    code               exit
    ├── InputError                  input                10   what was given cannot be used
    │   ├── NoDicomFound            no-dicom             11
    │   ├── InputUnreadable         input-unreadable     12
    │   │   └── InputDamaged        undecodable          15   it is there, but damaged or not what it claims
    │   ├── OutputInsideInput       output-inside-input  13
    │   ├── MaskMismatch            mask-mismatch        14
    │   └── NotDeidentified         not-deidentified     16   it cannot be handed over without its patient
    ├── OutputError                 output               20   results cannot be written
    │   ├── DiskFull                disk-full            21
    │   ├── OutputUnwritable        output-unwritable    22
    │   ├── OutputMismatch          output-mismatch      23
    │   └── OutputBusy              output-busy          24
    ├── WorkflowError               workflow             30   a workflow or recipe is wrong
    ├── WeightsError                weights              40   a set of weights cannot be used
    │   ├── WeightsMissing          weights-missing      41
    │   ├── WeightsAltered          weights-altered      42
    │   └── WeightsUnsupported      weights-unsupported  43
    ├── DeviceError                 device               50   the asked-for device is not there
    ├── TrainingError               training             60   training cannot start or go on
    ├── DestinationError            destination          70   files cannot be sent to another system
    │   ├── DestinationUnreachable  unreachable          71
    │   └── DestinationRefused      destination-refused  72
    └── SeriesError                 series                1   one series; the run goes on
        ├── SeriesRejected          (the gate's code)     0   a quality gate said no: a result, with a reason
        └── SeriesFailed            (the step's code)     1   something broke on this series

A message is one line: what happened, why, and what to do. ``code`` is stable and meant for programs,
``exit_code`` is what the command line ends with. Exit code 2 is argparse's (wrong usage), 130 is an
interrupt. Only ``cli`` turns errors into text and exit codes.
"""

from __future__ import annotations

from typing import ClassVar


class DeepCACError(Exception):
    """Base of all errors of this project. The message is one line that says what to do."""

    code: str = "error"
    exit_code: ClassVar[int] = 9


class InputError(DeepCACError):
    code = "input"
    exit_code = 10


class NoDicomFound(InputError):
    code = "no-dicom"
    exit_code = 11


class InputUnreadable(InputError):
    code = "input-unreadable"
    exit_code = 12


class InputDamaged(InputUnreadable):
    code = "undecodable"
    exit_code = 15


class OutputInsideInput(InputError):
    code = "output-inside-input"
    exit_code = 13


class MaskMismatch(InputError):
    code = "mask-mismatch"
    exit_code = 14


class NotDeidentified(InputError):
    code = "not-deidentified"
    exit_code = 16


class OutputError(DeepCACError):
    code = "output"
    exit_code = 20


class DiskFull(OutputError):
    code = "disk-full"
    exit_code = 21


class OutputUnwritable(OutputError):
    code = "output-unwritable"
    exit_code = 22


class OutputMismatch(OutputError):
    code = "output-mismatch"
    exit_code = 23


class OutputBusy(OutputError):
    code = "output-busy"
    exit_code = 24


class WorkflowError(DeepCACError):
    code = "workflow"
    exit_code = 30


class WeightsError(DeepCACError):
    code = "weights"
    exit_code = 40


class WeightsMissing(WeightsError):
    code = "weights-missing"
    exit_code = 41


class WeightsAltered(WeightsError):
    code = "weights-altered"
    exit_code = 42


class WeightsUnsupported(WeightsError):
    code = "weights-unsupported"
    exit_code = 43


class DeviceError(DeepCACError):
    code = "device"
    exit_code = 50


class TrainingError(DeepCACError):
    code = "training"
    exit_code = 60


class DestinationError(DeepCACError):
    code = "destination"
    exit_code = 70


class DestinationUnreachable(DestinationError):
    """There is no connection, or it was lost: another try may help."""

    code = "unreachable"
    exit_code = 71


class DestinationRefused(DestinationError):
    """It answers, but not as it should: another try does not help."""

    code = "destination-refused"
    exit_code = 72


class SeriesError(DeepCACError):
    """Concerns one series; the run records it in that series' row and goes on.

    Args:
        message: One line for the user.
        code: Stable reason code of the gate or step, e.g. ``"too-thick"``.
    """

    code = "series"
    exit_code = 1

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class SeriesRejected(SeriesError):
    """A quality gate refused the series. A result with a reason, not a failure."""

    exit_code = 0


class SeriesFailed(SeriesError):
    """Reading, computing or writing this series broke."""
