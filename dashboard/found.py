"""Which rows a text finds: looked for once, whatever is then listed, counted and drawn of them."""

from __future__ import annotations

import threading
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

TABLE = "everything"
"""The table whose rows are looked for; its ``rowid`` goes from 0 without a gap: nothing is ever deleted."""

_KEPT = 16
"""Conditions remembered at a time. With one bit a row, written in four thirds of it, 16 take 5 MB for 2
million rows, and 13 MB for the most that a table may have. Chosen."""
_FEW = 1000
"""Up to so many rows are told by their numbers, which DuckDB looks up sooner than it tests one bit of each
row; more than some thousand are slower to read. Chosen by measuring with 2 million rows."""


class Found:
    """Conditions on the rows of `TABLE` that take long, each answered once and remembered.

    The text of all rows is the longest column by far, and one search asks for its rows in four queries. The
    first to ask looks; whoever asks for the same meanwhile waits for it. It belongs to one table, which does
    not change, and ends with it.

    Args:
        ask: Gives the rows of a query.
        rows: Of the table.
        few: Up to so many rows are told by their numbers.
    """

    def __init__(self, ask: Callable[[str], list[tuple[Any, ...]]], rows: int, *, few: int = _FEW) -> None:
        self._ask = ask
        self._bits = -(-rows // 8) * 8  # of whole bytes
        self._few = few
        self._answers: OrderedDict[str, Future[str]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Conditions that are remembered."""
        return len(self._answers)

    def __call__(self, condition: str) -> str:
        """A condition in SQL that the same rows fit, and that takes little time.

        Args:
            condition: In SQL, on the columns of `TABLE`.
        """
        with self._lock:
            answer = self._answers.get(condition)
            first = answer is None
            if answer is None:
                answer = self._answers[condition] = Future()
                if len(self._answers) > _KEPT:
                    self._answers.popitem(last=False)
            else:
                self._answers.move_to_end(condition)
        if first:
            try:
                answer.set_result(self._look(condition))
            except BaseException as error:  # whoever waits gets it as well, and the next one looks again
                with self._lock:
                    if self._answers.get(condition) is answer:
                        del self._answers[condition]
                answer.set_exception(error)
        return answer.result()

    def _look(self, condition: str) -> str:
        ((count, bits),) = self._ask(
            f"SELECT count(*), CAST(bitstring_agg(rowid, 0, {self._bits - 1}) AS BLOB) "
            f"FROM {TABLE} WHERE {condition}"
        )
        if not count:
            return "false"
        if count <= self._few:
            (numbers,) = np.nonzero(np.unpackbits(np.frombuffer(bits, np.uint8)))
            return f"rowid IN (VALUES {', '.join(f'({number})' for number in numbers)})"
        return f"get_bit(CAST(from_base64('{b64encode(bits).decode()}') AS BIT), CAST(rowid AS INTEGER)) = 1"
