"""The package under its own name, where it was imported under another: MHub has it as ``models.deepcac2``.

A plug-in imports ``deepcac2``. In a process that has the tree under another name this must be the same tree
and not a second one, with a registry of its own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Alias(MetaPathFinder, Loader):
    def __init__(self, name: str, real: str) -> None:
        self._name, self._real = name, real

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        is_ours = fullname == self._name or fullname.startswith(f"{self._name}.")
        return ModuleSpec(fullname, self) if is_ours else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._real + spec.name.removeprefix(self._name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It was executed under its real name; the import system has only written the alias into its spec."""
        spec = module.__spec__
        module.__spec__ = spec.loader_state if spec is not None else None


def alias(name: str, real: str) -> None:
    """From now on ``import name`` gives the package that was imported as `real`, and its modules with it."""
    if name != real and name not in sys.modules:
        sys.meta_path.insert(0, _Alias(name, real))
