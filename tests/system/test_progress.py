"""What workers tell of how far they are reaches whoever watches the run, and nothing else of the log does."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from deepcac2.batch.worker import add_log_file
from deepcac2.system.progress import followed, tell

WORKER = """
import sys
from pathlib import Path
from deepcac2.batch.worker import add_log_file
from deepcac2.system.progress import tell
add_log_file(Path(sys.argv[1]))
tell("7 of 9 patches, about 3 s left")
"""


def test_what_is_told_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    shown: list[str] = []
    handler = add_log_file(path)
    logger = logging.getLogger("deepcac2")
    try:
        tell("before anybody looked")
        with followed(path, shown.append):
            logger.info("something else")
            tell("1 of 9 patches\nabout \x1b[31m20 s left")
            subprocess.run([sys.executable, "-c", WORKER, str(path)], check=True)
            logger.warning("of 9 patches")
        tell("after all")
    finally:
        logger.removeHandler(handler)
        handler.close()
    assert len(shown) == 2
    assert shown[0].startswith("1 of 9 patches")
    assert "\x1b" not in shown[0]
    assert shown[1] == "7 of 9 patches, about 3 s left"
