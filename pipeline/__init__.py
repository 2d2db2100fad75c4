"""The chain: `Case`, the stages, workflows in MHub's format, and the run over a folder."""

from .case import Case
from .workflow import Workflow

__all__ = ["Case", "Workflow"]
