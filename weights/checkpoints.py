"""The one door for pickles and checkpoints of others: data is built, nothing of theirs runs.

A pickle is a program for a small machine that calls what it names. Here it may name a few things only, and
these are ours: they build strings, sets and NumPy arrays out of bytes that stand in the file, and never more
than `_BUDGET` of them. Checkpoints are read by torch's own restricted unpickler, after a look at the archive
and before one at the tensors, so that neither can be much larger than the file.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import WeightsMissing, WeightsUnsupported
from ..system.foreign import foreign, read_bytes

if TYPE_CHECKING:
    import torch

MAX_PICKLE = 16 << 20
"""Bytes of a pickle of plain data that are read at most; chosen: nnU-Net v1's plans of 1,000 cases have 1."""
_BUDGET = 256 << 20
"""Bytes that a pickle may build by calls, which can use what stands in the file once again and again."""
_NOT_DATA = "holds more than plain data"


class _Dtype:
    """What a pickle says of a NumPy dtype: numbers, truth values and text, never objects."""

    def __init__(self, code: str, align: object = False, copy: object = False) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biufc]\d{1,2}|[SU]\d{1,4}", code):
            raise pickle.UnpicklingError(f"numpy.dtype {code!r:.20}")
        self._code, self._order = code, ""

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self._order = state[1]

    @property
    def real(self) -> Any:
        """The dtype itself."""
        import numpy as np

        return np.dtype(self._order + self._code)


@cache
def _array_class() -> type:
    """NumPy arrays that take their content from a pickle only where it is all there."""
    import numpy as np

    class Array(np.ndarray):
        def __setstate__(self, state: Any) -> None:
            _, shape, dtype, fortran, data = state
            size = prod(int(n) for n in shape) * dtype.real.itemsize
            if not isinstance(data, bytes) or len(data) != size or any(n < 0 for n in shape):
                raise pickle.UnpicklingError("a NumPy array without its data")
            state = (1, shape, dtype.real, bool(fortran), data)
            super().__setstate__(state)

    return Array


def _empty_array(kind: object, shape: object, code: object) -> Any:
    """In place of ``numpy.core.multiarray._reconstruct``, which makes an array of any size."""
    return _array_class()((0,), "b")


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    """In place of ``numpy.core.multiarray.scalar``."""
    import numpy as np

    return np.frombuffer(data, dtype.real, 1)[0]


def _encoded(text: str, codec: str = "latin1") -> bytes:
    """In place of ``_codecs.encode``, by which pickles of protocol 2 write bytes; no other codec."""
    if codec not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the codec {codec!r:.20}")
    return text.encode("latin1")


class _PlainUnpickler(pickle._Unpickler):
    """Builds containers, strings, numbers and NumPy arrays, nothing else.

    The library's unpickler in Python, because its methods can be replaced one by one.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]  # these three are the library's
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._left = _BUDGET

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise pickle.UnpicklingError(f"more than {_BUDGET >> 20} MB")

    def _encode(self, text: str, codec: str = "latin1") -> bytes:
        self._spend(len(text))
        return _encoded(text, codec)

    def _set(self, items: Iterable[Any] = ()) -> set[Any]:
        if not isinstance(items, (list, tuple)):
            raise pickle.UnpicklingError("a set of something else than a list")
        self._spend(100 * len(items))
        return {_key(item) for item in items}

    def _from_buffer(self, data: Any, dtype: _Dtype, shape: Any, order: str) -> Any:
        import numpy as np

        return np.frombuffer(data, dtype.real).reshape(shape, order="F" if order == "F" else "C")

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("_codecs", "encode"): self._encode,
            ("builtins", "set"): self._set,
            ("builtins", "frozenset"): self._set,
            ("builtins", "complex"): complex,
            ("numpy", "dtype"): _Dtype,
            ("numpy", "ndarray"): "numpy.ndarray",  # only ever an argument of the next
        }
        for core in ("numpy.core", "numpy._core"):
            known[f"{core}.multiarray", "_reconstruct"] = _empty_array
            known[f"{core}.multiarray", "scalar"] = _scalar
            known[f"{core}.numeric", "_frombuffer"] = self._from_buffer
        module = {"__builtin__": "builtins"}.get(module, module)
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name}"[:100])
        return known[module, name]

    def load_build(self) -> None:
        state = self.stack.pop()
        inst = self.stack[-1]
        known: tuple[Any, ...] = (_Dtype, _array_class())
        if not isinstance(inst, known):
            raise pickle.UnpicklingError(f"a state for a {type(inst).__name__}")
        if isinstance(state, tuple) and isinstance(state[-1], bytes):
            self._spend(len(state[-1]))
        inst.__setstate__(state)

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        data = self.read(min(size, MAX_PICKLE))
        if len(data) != size:
            raise pickle.UnpicklingError("bytes that are not there")
        self.append(bytearray(data))

    def load_setitem(self) -> None:
        _key(self.stack[-2])
        _by_library(pickle.SETITEM, self)

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            _key(key)
        _by_library(pickle.SETITEMS, self)

    def load_additems(self) -> None:
        for item in self.stack:
            _key(item)
        _by_library(pickle.ADDITEMS, self)

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.ADDITEMS[0]] = load_additems
    for _opcode in (
        pickle.FROZENSET,
        pickle.NEWOBJ,
        pickle.NEWOBJ_EX,
        pickle.INST,
        pickle.OBJ,
    ):
        del dispatch[_opcode[0]]


def _by_library(opcode: bytes, unpickler: Any) -> None:
    """What the library's own unpickler does."""
    pickle._Unpickler.dispatch[opcode[0]](unpickler)


def _key(value: Any) -> Any:
    """A value that may be a key: hashing tuples within tuples can take for ever."""
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, (tuple, frozenset)):
            raise pickle.UnpicklingError("tuples within a key")
    return value


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle of plain data: containers, strings, numbers and NumPy arrays.

    Raises:
        WeightsMissing: No such file.
        WeightsUnsupported: It names any other class or function, is too large (`MAX_PICKLE`), or is none.
    """
    if not path.exists():
        raise WeightsMissing(f"{path} is missing; copy the whole nnU-Net v1 folder")
    data = read_bytes(path, most=MAX_PICKLE, error=WeightsUnsupported)
    with foreign(str(path), error=WeightsUnsupported, fault="is no readable pickle"):
        try:
            return _PlainUnpickler(data).load()
        except pickle.UnpicklingError as error:
            raise WeightsUnsupported(f"{path} {_NOT_DATA} ({error!s:.100}); not opened") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a torch checkpoint with torch's restricted unpickler: of nnU-Net v1 or v2, or a `state_dict`.

    Tensors, plain containers and NumPy numbers are let through, nothing else.

    Raises:
        WeightsUnsupported: It holds anything else, is packed, or is no checkpoint.
    """
    import torch

    with foreign(str(path), error=WeightsUnsupported):
        if not path.is_file():
            raise ValueError("it is no regular file")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
            if any(m.compress_type or m.file_size != m.compress_size for m in members):
                raise ValueError("its parts are packed, which torch never does")
            if sum(m.file_size for m in members) > path.stat().st_size:
                raise ValueError("its parts are larger than itself")
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # In our own words: torch advises to load it without the restriction.
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise WeightsUnsupported(
            f"{path} holds more than weights, or is no checkpoint "
            f"({named[1][:100] if named else type(error).__name__}); not opened"
        ) from error
    if not isinstance(state, dict):
        raise WeightsUnsupported(f"{path} is no checkpoint: it holds a {type(state).__name__}")
    return state


def checked_tensors(state: Mapping[str, torch.Tensor], path: Path) -> Mapping[str, torch.Tensor]:
    """Tensors of a checkpoint that all stand in the file: none repeats its numbers, all together fit into it.

    Raises:
        ValueError: They do not, or are no plain tensors.
    """
    import torch

    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name!r:.60} is no tensor")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"{name:.60} is no plain tensor")
    if sum(t.numel() * t.element_size() for t in state.values()) > path.stat().st_size:
        raise ValueError("its tensors are larger than the file")
    return state


def _numpy_globals() -> list[Any]:
    """The NumPy names that nnU-Net's logs in a checkpoint consist of, as NumPy 1 and 2 spell them."""
    found: list[Any] = [
        (_Dtype, "numpy.dtype"),
        (_array_class(), "numpy.ndarray"),
        (_encoded, "_codecs.encode"),
    ]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found += [(_scalar, f"{module}.scalar"), (_empty_array, f"{module}._reconstruct")]
    return found
