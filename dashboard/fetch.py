"""Get the front-end files that are served but not kept in the repository: OHIF and Vega.

They come from the npm registry by name and exact version, are checked against the sha512 that stands here,
and are laid into ``dashboard/vendor``. Run by ``make viewer``; nothing else in this project needs npm.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import DeepCACError, InputError
from ..system.atomic import output_errors

log = logging.getLogger(__name__)

VENDOR = Path(__file__).resolve().parent / "vendor"
"""Where the files go; ignored by git, packed into a wheel where they are there."""

PUBLIC_URL = "/viewer/"
"""Where OHIF's files are served. They name each other by absolute paths, which are rewritten to it."""

_NPM_SECONDS = 600.0
"""Time for one archive; OHIF's has 50 MB. Chosen."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package of the npm registry.

    Attributes:
        name, version: As npm knows it.
        sha512: Of the archive, base64, as in the registry's ``dist.integrity``.
    """

    name: str
    version: str
    sha512: str


OHIF = Package(
    name="@ohif/app",
    version="3.13.2",
    sha512="WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA==",
)
VEGA = (
    Package(
        name="vega",
        version="6.4.0",
        sha512="rHXCq2LpEWCLMjXBEj7hocY9G0/i5TGYRayGGSj06VTF4+l2IG2Z7oeZKCjWbUh/7hTE/mVhbaOPB72wCElh6g==",
    ),
    Package(
        name="vega-lite",
        version="6.5.0",
        sha512="fMXF6s0MrIg0UTWnLIfeFtgSLzVhyzSKobzGrh5rhS+mL6FOYFG3m7ouJ4U23gj65EK+gl9FIIT5w7wLNaAzkA==",
    ),
    Package(
        name="vega-embed",
        version="7.3.0",
        sha512="wQ8s5GaSzqoKgmRfbRolgBrjE2CP7ZKHXqH7NijxMqPjpdWxSs4Dn8tvp9g0giQvh2cK+3p56sxjWWM0wNngGw==",
    ),
    Package(
        name="vega-interpreter",
        version="2.3.2",
        sha512="JDAoi3taFcCDLujZG84TNNUXdkAZ5WsSHssx8lWVYaxb9Slsjk7v7PtRIYXpSlUwLaKGRBqoJ9KDs36Z0eMEIw==",
    ),
)


def fetch(vendor: Path = VENDOR) -> None:
    """Get OHIF and Vega into ``<vendor>/ohif`` and ``<vendor>/vega``; what is there is replaced.

    Each of the two folders appears whole or not at all.

    Raises:
        InputError: npm is missing, the registry does not answer, or an archive is not the one that was
            pinned.
        DiskFull, OutputUnwritable: The folder cannot be written.
    """
    with output_errors(vendor):
        vendor.mkdir(parents=True, exist_ok=True)
    _lay(vendor / "ohif", _unpack_ohif)
    _lay(vendor / "vega", _unpack_vega)


def _lay(target: Path, fill: Callable[[Path, Path], None]) -> None:
    """Fill a folder beside `target` and put it in the place of `target`."""
    with (
        output_errors(target),
        tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary,
    ):
        archives, made, before = (Path(temporary) / name for name in ("archives", "made", "before"))
        archives.mkdir()
        made.mkdir()
        fill(archives, made)
        if target.exists():
            target.rename(before)
        made.rename(target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    log.info("%s: %.1f MB", target, size / 1e6)


def _unpack_ohif(archives: Path, target: Path) -> None:
    """What the viewer needs, with its own addresses; see `_OHIF_FILES` and `_rewritten`."""
    index = ""
    changes: dict[str, int] = {}
    for name, content in _members(_pack(OHIF, archives)):
        if name == "dist/index.html":
            index = content.decode()
        if (inner := _ohif_name(name)) is not None:
            path = target / inner
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(_rewritten(inner, content, changes))
    missing = [what for what in _EDITS if not changes.get(what)]
    scripts = re.findall(r'<script defer src="/(app\.bundle\.[0-9a-f]+\.js)">', index)
    if missing or len(scripts) != 1:
        raise InputError(
            f"the files of {OHIF.name} {OHIF.version} are not laid out as expected "
            f"({', '.join(missing) or 'index.html'}); this version of deepcac2 cannot use them"
        )
    (target / "index.html").write_text(_INDEX.format(base=PUBLIC_URL, script=scripts[0]), encoding="utf-8")


def _unpack_vega(archives: Path, target: Path) -> None:
    for package in VEGA:
        wanted = {f"build/{package.name}.min.js", "LICENSE"}
        if package.name == "vega-interpreter":  # comes as an ES module only
            wanted = {"build/vega-interpreter.js", "LICENSE"}
        found = {name: data for name, data in _members(_pack(package, archives)) if name in wanted}
        if found.keys() != wanted:
            raise InputError(
                f"{package.name} {package.version} lacks {', '.join(sorted(wanted - found.keys()))}"
            )
        script = found[next(name for name in wanted if name != "LICENSE")].decode()
        if package.name == "vega-interpreter":
            script = _as_script(script)
        (target / f"{package.name}.min.js").write_text(script, encoding="utf-8")
        (target / f"{package.name}.LICENSE").write_bytes(found["LICENSE"])


def _as_script(module: str) -> str:
    """The ES module vega-interpreter as a plain script: ``vega.expressionInterpreter``.

    What it imports from vega-util, `vega` exports too.
    """
    body, imports = re.subn(
        r"^import (\{[^}]*\}) from 'vega-util';$", r"const \1 = vega;", module, flags=re.M
    )
    body, exports = re.subn(
        r"^export \{ (\w+) as expressionInterpreter \};$",
        r"vega.expressionInterpreter = \1;",
        body,
        flags=re.M,
    )
    if (imports, exports) != (1, 1):
        raise InputError(
            "vega-interpreter is not laid out as expected; this version of deepcac2 cannot use it"
        )
    return f"(function () {{\n{body}\n}})();\n"


def _pack(package: Package, folder: Path) -> Path:
    """The archive of a package, downloaded and checked.

    Raises:
        InputError: npm is missing or fails, or the archive is another one.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            "npm is not installed, and the viewer's files come from its registry; install Node.js, or use "
            "the dashboard without the viewer"
        )
    own = folder / package.name.replace("/", "-")
    own.mkdir()
    command = [npm, "pack", f"{package.name}@{package.version}", "--ignore-scripts", "--silent"]
    try:
        done = subprocess.run(
            command, cwd=own, capture_output=True, text=True, timeout=_NPM_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"npm did not get {package.name} within {_NPM_SECONDS:.0f} s; try again with a better connection"
        ) from error
    found = list(own.glob("*.tgz"))
    if done.returncode or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip() and "warn" not in line.lower()]
        reason = lines[0].strip() if lines else f"exit code {done.returncode}"
        raise InputError(
            f"npm could not get {package.name}@{package.version} ({reason}); check the network and the "
            "registry that npm is set to"
        )
    digest = base64.b64encode(hashlib.sha512(found[0].read_bytes()).digest()).decode()
    if digest != package.sha512:
        raise InputError(
            f"{package.name}@{package.version} is not the archive that deepcac2 was made with (its sha512 "
            "differs); nothing of it was used"
        )
    return found[0]


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Name below ``package/`` and content of each plain file of an npm archive."""
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            name = member.name.removeprefix("package/")
            if content is not None and ".." not in Path(name).parts:
                yield name, content.read()


_OHIF_FILES = re.compile(
    r"dist/((?:[\w-]+\.bundle\.[0-9a-f]+\.js|app\.bundle\.css|\d+\.css|[0-9a-f]+\.wasm|[0-9a-f]+\.woff2)"
    r"|assets/(?:images/[\w-]+\.png|favicon[\w-]*\.(?:png|ico)))"
)
"""Scripts, styles, decoders, font and pictures. Left out are ONNX Runtime (136 MB, for a segmentation tool
that would load its network from elsewhere), the microscopy viewer (20 MB), service workers that ask a CDN,
sign-in pages, splash screens, example configurations and source maps."""


def _ohif_name(name: str) -> str | None:
    """Name below the target of a file of OHIF's archive, or None for one that is left out."""
    if name == "LICENSE":
        return name
    match = _OHIF_FILES.fullmatch(name)
    return match[1] if match else None


_EDITS: dict[str, tuple[str, str, str]] = {
    "addresses of scripts": (
        ".js",
        r'__webpack_require__\.p = "/";',
        f'__webpack_require__.p = "{PUBLIC_URL}";',
    ),
    "addresses in styles": (".css", r"url\(/", f"url({PUBLIC_URL}"),
    "modes": (
        ".js",
        r'^pluginImports_modes\.push\("@ohif/mode-(?!longitudinal")[\w-]+"\);$',
        "// not used by deepcac2",
    ),
    "extensions": (
        ".js",
        r'^pluginImports_extensions\.push\("@ohif/extension-ultrasound-pleura-bline"\);$',
        "// not used by deepcac2",
    ),
}
"""Changes to OHIF's files, by what they are about: ending, pattern, replacement. Each must apply."""


def _rewritten(name: str, content: bytes, changes: dict[str, int]) -> bytes:
    """A file with `_EDITS` applied; how often each applied is added to `changes`."""
    if not name.endswith((".js", ".css")):
        return content
    text = content.decode()
    for what, (ending, pattern, replacement) in _EDITS.items():
        if name.endswith(ending):
            text, count = re.subn(pattern, replacement, text, flags=re.M)
            changes[what] = changes.get(what, 0) + count
    return text.encode()


_INDEX = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Viewer · deepcac2</title>
<link rel="icon" href="{base}assets/favicon.ico">
<link rel="stylesheet" href="{base}app.bundle.css">
<script src="{base}app-config.js"></script>
<script defer src="{base}{script}"></script>
</head>
<body>
<noscript>The viewer needs JavaScript.</noscript>
<div id="react-portal"></div>
<div id="root"></div>
</body>
</html>
"""
"""OHIF's page without its inline scripts, so that the Content-Security-Policy need not allow any."""


def main() -> int:
    """``python -m deepcac2.dashboard.fetch``: what ``make viewer`` runs."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        fetch()
    except DeepCACError as error:
        log.error("error: %s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
