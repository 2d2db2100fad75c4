"""How busy a GPU is."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

import torch

log = logging.getLogger(__name__)


class GpuMeter:
    """Mean utilisation of a GPU while the block runs, asked of the driver four times a second.

    Utilisation is NVML's: the share of time in which a kernel ran. On a CPU, or without NVML's Python
    module (nvidia-ml-py), there is none.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._values: list[float] = []
        self._marked = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> GpuMeter:
        if self._device.type == "cuda" and self._read() is not None:
            self._thread = threading.Thread(target=self._sample, name="gpu-meter", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _read(self) -> float | None:
        try:
            return float(torch.cuda.utilization(self._device))
        except (ModuleNotFoundError, RuntimeError) as error:
            log.warning("GPU utilisation cannot be measured: %s", str(error).splitlines()[0])
            return None

    def _sample(self) -> None:
        while not self._stop.wait(0.25):
            value = self._read()
            if value is None:
                return
            self._values.append(value)

    def since_last(self) -> float | None:
        """Mean since this was last called, percent."""
        values, self._marked = self._values[self._marked :], len(self._values)
        return sum(values) / len(values) if values else None

    def mean(self) -> float | None:
        """Mean of the whole block, percent."""
        return sum(self._values) / len(self._values) if self._values else None
