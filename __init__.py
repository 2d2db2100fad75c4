"""deepcac2: coronary calcium from non-contrast chest CT.

Importing this package is cheap: torch, monai, nnunetv2, pydicom and numpy are loaded only by the
rooms that use them. The names below are the public interface; they load on first use.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .dicom import Series as Series
    from .errors import DeepCACError as DeepCACError
    from .imaging import Volume as Volume
    from .pipeline import Case as Case
    from .pipeline import Workflow as Workflow
    from .scoring import CalciumScore as CalciumScore
    from .scoring import score as score

__version__ = "0.1.0"

_EXPORTS = {
    "Case": "pipeline",
    "CalciumScore": "scoring",
    "DeepCACError": "errors",
    "Series": "dicom",
    "Volume": "imaging",
    "Workflow": "pipeline",
    "score": "scoring",
}

__all__ = ["CalciumScore", "Case", "DeepCACError", "Series", "Volume", "Workflow", "__version__", "score"]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(_import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
