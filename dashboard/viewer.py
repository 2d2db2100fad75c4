"""OHIF's prebuilt viewer on the dashboard's own origin; `fetch` gets its files."""

from __future__ import annotations

import json
import mimetypes
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, PlainTextResponse, Response

CONFIG = Path(__file__).resolve().parent / "web" / "app-config.js"

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; "
    "script-src 'self' 'unsafe-eval'; "
    "worker-src 'self'; "
    "style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; "
    "font-src 'self'; "
    "connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What OHIF 3.13.2 needs and no more. Its decoders of compressed images (Emscripten) and its reader of SEG
(ndarray) make functions from text, hence ``unsafe-eval``. Scripts are of this origin, and never inline."""

_HASHED = "public, max-age=31536000, immutable"
"""Caching of files whose name changes with their content."""


def router(vendor: Path, dicomweb: str = "/dicomweb") -> APIRouter | None:
    """The viewer at ``/viewer``.

    A case is opened with
    ``/viewer?StudyInstanceUIDs=STUDY&SeriesInstanceUIDs=CT,SEG,SR&initialSeriesInstanceUID=SEG``.

    Args:
        vendor: Folder that `fetch.fetch` has filled.
        dicomweb: Address of the DICOMweb service, a path on this origin or a whole URL. A service elsewhere
            must allow this origin (CORS), and `CONTENT_SECURITY_POLICY` must name it in ``connect-src``.

    Returns:
        Routes whose answers carry `CONTENT_SECURITY_POLICY`; None where the files are not there.
    """
    folder = vendor / "ohif"
    index = folder / "index.html"
    if not index.is_file():
        return None
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    config = CONFIG.read_text(encoding="utf-8").replace("__DICOMWEB__", json.dumps(dicomweb))
    routes = APIRouter()

    def page() -> Response:
        return FileResponse(index, media_type="text/html", headers=_headers("no-cache"))

    def app_config() -> Response:
        return Response(config, media_type="text/javascript", headers=_headers("no-cache"))

    def file(name: str) -> Response:
        path = files.get(name)  # a name that is not among the files never reaches the file system
        if path is None:
            return PlainTextResponse("no such file of the viewer\n", 404)
        kind = mimetypes.types_map.get(path.suffix, "application/octet-stream")
        caching = _HASHED if path.name != "app.bundle.css" else "no-cache"
        return FileResponse(path, media_type=kind, headers=_headers(caching))

    routes.add_api_route("/viewer", page)
    routes.add_api_route("/viewer/app-config.js", app_config)
    routes.add_api_route("/viewer/{name:path}", file)
    return routes


def _headers(caching: str) -> dict[str, str]:
    return {"Cache-Control": caching, "Content-Security-Policy": CONTENT_SECURITY_POLICY}
