"""Print the exact versions installed beside this interpreter, in the form of ``constraints.txt``.

Run it with a virtual environment that `make` built without constraints::

    .venv/bin/python .ci/constraints.py > constraints.txt

Each line carries the Python versions for which its release exists (``Requires-Python``), so that an older
or newer interpreter is left free to choose another release instead of failing. Local parts of a version
(``+cpu``, ``+cu130``) are dropped: the pin holds for every build of that release.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions

LEFT_OUT = {"deepcac2", "pip", "mhubio", "segdb"}  # the last two are installed without their dependencies
OLDEST = (3, 10)  # requires-python in pyproject.toml

HEADER = """\
# Exact versions known to work together (CPython 3.11, Linux x86-64).
# Install with: pip install -c constraints.txt -e '.[dev]'   (`make` does it)
# Made by .ci/constraints.py; mhubio==0.0.2 and segdb==0.0.3 are installed without dependencies, see
# docs/decisions/0003-mhubio-without-dependencies.md.
"""


def marker(requires_python: str | None) -> str:
    """The environment marker for a release, empty where it covers every Python this project supports."""
    lowest = re.search(r">=\s*(\d+)\.(\d+)", requires_python or "")
    if lowest is None or (int(lowest[1]), int(lowest[2])) <= OLDEST:
        return ""
    return f' ; python_version >= "{lowest[1]}.{lowest[2]}"'


def main() -> int:
    pins = {}
    for found in distributions():
        name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
        if name not in LEFT_OUT:
            pins[name] = f"{name}=={found.version.split('+')[0]}{marker(found.metadata['Requires-Python'])}"
    sys.stdout.write(HEADER + "\n".join(pins[name] for name in sorted(pins)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
