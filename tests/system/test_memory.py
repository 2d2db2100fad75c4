"""Memory that is freed and asked for again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

AGAIN = """
import resource, sys

from deepcac2.system.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * (20 << 20) for _ in range(10)]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    del blocks
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_what_is_freed_is_there_again() -> None:
    """The second time the system hands out no pages; without, it hands out most of them anew."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    kept, given_back = (
        int(
            subprocess.run(
                [sys.executable, "-c", AGAIN, how], env=environment, check=True, stdout=subprocess.PIPE
            ).stdout
        )
        for how in ("kept", "given back")
    )
    assert kept < 1000
    assert given_back > 10_000
