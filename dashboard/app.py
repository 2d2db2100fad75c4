"""The dashboard as a web application: the page, its API, and where the viewer's parts are joined on."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson
from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, RedirectResponse, StreamingResponse

from .. import __version__
from ..errors import DeepCACError, InputError, InputUnreadable
from ..pipeline.step import Described
from ..review.desk import Desk
from . import dicomweb, review, slices, viewer, views
from .fetch import VEGA, VENDOR
from .files import read_json
from .security import SQL_PATH, Access, Guard
from .sql import LENGTH, run_query
from .store import DicomStore
from .table import CLASSES, TYPES, Results, Selection, parse_selection

WEB = Path(__file__).with_name("web")
PAGES = ("/", "/not-scored", "/sql", "/case/{series_uid}", "/review", "/review/{series_uid}")
"""Addresses of the page's views; all are the same file."""
_PAGE_SIZE = 50


def create_app(
    folder: Path,
    *,
    ct: Path | None = None,
    clinical: Path | None = None,
    patient: str = "patient_id",
    show_phi: bool = False,
    access: Access | None = None,
    vendor: Path = VENDOR,
    readings: Path | None = None,
) -> FastAPI:
    """The dashboard over the results of a run.

    Args:
        folder: Output of a run.
        ct: Folder with its CT, for slices and viewer.
        clinical, patient: Table with one row a patient, and its column of PatientIDs.
        show_phi: Show what says who somebody is.
        access: Who may ask; only this machine where it is None.
        vendor: Folder with the files that `make viewer` fetches.
        readings: Folder of the reading desk; None: nothing can be decided. Needs `ct`.

    Raises:
        InputUnreadable, InputError: See `table.Results`; a desk without a CT.
        OutputInsideInput, DiskFull, OutputUnwritable: See `review.desk.Desk`.
    """
    if readings is not None and ct is None:
        raise InputError("reading needs the CT: give --ct FOLDER as well")
    results = Results(folder, clinical=clinical, patient=patient, show_phi=show_phi)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        results.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.results = results
    allowed = replace(access or Access(), review=readings is not None)
    app.add_middleware(Guard, access=allowed)

    try:
        store = DicomStore(results, ct, show_phi)
        desk = None
        if readings is not None and ct is not None:
            desk = Desk(readings, review.opener(store), apart=(folder, ct))
            desk.readings()  # now, and not at the first request: what is found is remembered
    except DeepCACError:
        results.close()
        raise
    if desk is not None:
        app.include_router(review.router(store, results, desk))
    app.include_router(dicomweb.router(store), prefix="/dicomweb")
    app.include_router(slices.router(store))
    pages = viewer.router(vendor) if ct is not None else None
    if pages is not None:
        app.include_router(pages)

    charts = {name: vendor / "vega" / name for name in (f"{package.name}.min.js" for package in VEGA)}
    has_charts = all(path.is_file() for path in charts.values())
    assets = {path.name: path for path in WEB.iterdir() if path.is_file()}
    if has_charts:
        assets |= charts
    about = _about(results, folder, charts=has_charts, viewer=pages is not None, slices=ct is not None)
    about |= {"review": desk is not None, "files": show_phi}

    def selection(request: Request) -> Selection:
        return parse_selection(request.query_params.multi_items(), results.filters, results.columns)

    @app.exception_handler(InputError)
    async def wrong(request: Request, error: InputError) -> Response:
        return _json({"error": str(error)}, status=422)

    @app.exception_handler(404)
    async def nowhere(request: Request, error: Exception) -> Response:
        """A program gets JSON, a person the page, which says that there is nothing."""
        if request.url.path.startswith(("/api/", "/assets/", "/dicomweb/", "/viewer")):
            return _json({"error": "there is nothing at this address"}, status=404)
        return FileResponse(assets["index.html"], 404, headers={"Cache-Control": "no-store"})

    def page() -> Response:
        return FileResponse(assets["index.html"], headers={"Cache-Control": "no-cache"})

    for path in PAGES:
        app.add_api_route(path, page)

    @app.get("/assets/{name}")
    def asset(name: str) -> Response:
        if name not in assets:
            return _json({"error": "there is no such file"}, status=404)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return FileResponse(assets[name], media_type=kind, headers={"Cache-Control": "no-cache"})

    @app.get("/api/about")
    def get_about() -> Response:
        return _json(about)

    @app.get("/api/cases")
    def get_cases(request: Request) -> Response:
        number = _whole(request, "page", 1), _whole(request, "size", _PAGE_SIZE)
        found = views.cases(results, selection(request), page=number[0], size=number[1])
        if desk is not None:
            found["rows"] = [{**row, "read": review.signed_scores(desk, row)} for row in found["rows"]]
        return _json(found)

    @app.get("/api/counts")
    def get_counts(request: Request) -> Response:
        """What the filters and the charts show."""
        return _json(views.counts(results, selection(request)))

    @app.get("/api/not-scored")
    def get_not_scored(request: Request) -> Response:
        return _json(views.not_scored(results, selection(request)))

    @app.get("/api/export.csv")
    def get_export(request: Request) -> Response:
        name = 'attachment; filename="deepcac2-selection.csv"'
        rows = views.export(results, selection(request))
        return StreamingResponse(rows, media_type="text/csv", headers={"Content-Disposition": name})

    @app.get("/api/cases/{series_uid}")
    def get_case(series_uid: str) -> Response:
        row = results.row(series_uid)
        if row is None:
            return _json({"error": "the results hold no such series"}, status=404)
        segmentation = store.segmentation(series_uid)
        address = viewer_address(row, store) if pages is not None else None
        read = [] if desk is None else review.signed_scores(desk, row)
        found = views.case(results, folder, row)
        return _json({**found, "segmentation": segmentation, "viewer": address, "read": read})

    @app.get("/api/cases/{series_uid}/beside")
    def get_beside(request: Request, series_uid: str) -> Response:
        """Where a series stands in a selection, and its neighbours there; null where it is not in it."""
        return _json(views.beside(results, selection(request), series_uid))

    @app.get("/api/cases/{series_uid}/viewer")
    def get_viewer(series_uid: str) -> Response:
        """To the viewer: its address needs a look at the files, which a table of cases does not take."""
        row = results.row(series_uid)
        if row is None or pages is None:
            return _json({"error": "there is no viewer of this series"}, status=404)
        address = viewer_address(row, store)
        image = slices.first_image(store, series_uid)
        return RedirectResponse(f"{address}&{urlencode({'slice': image})}" if image else address, 303)

    @app.get("/api/cases/{series_uid}/preview.png")
    def get_preview(series_uid: str) -> Response:
        row = results.row(series_uid)
        picture = views.picture(folder, row) if row is not None else None
        if picture is None:
            return _json({"error": "there is no picture of this series"}, status=404)
        return FileResponse(picture, media_type="image/png")

    @app.get("/api/cases/{series_uid}/files/{name}")
    def get_file(series_uid: str, name: str) -> Response:
        """A SEG, SR or page of the run, as it is: with all that the CT says of the patient."""
        row = results.row(series_uid)
        found = views.made_file(folder, row, name) if row is not None else None
        if found is None:
            return _json({"error": "the run wrote no such file for this series"}, status=404)
        if not show_phi:
            return _json({"error": review.NAMED}, status=403)
        return FileResponse(found, media_type=views.MADE[found.suffix], filename=name)

    @app.get("/api/cases/{series_uid}/thumbnail.png")
    def get_thumbnail(request: Request, series_uid: str) -> Response:
        """A small picture; of a series that has none an answer without content, which is no error.

        A browser keeps it, and asks each time whether it is still the same: after another run of the same
        series it is not.
        """
        row = store.row(series_uid)
        if row is None:
            return _json({"error": "the results hold no such series"}, status=404)
        small = views.small_picture(row.folder, folder)
        if small is None:
            return Response(status_code=204)
        tag = f'"{hashlib.sha256(small).hexdigest()[:32]}"'
        caching = {"Cache-Control": "private, no-cache", "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=caching)
        return Response(small, media_type="image/png", headers=caching)

    @app.post(SQL_PATH)
    async def post_sql(request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > 4 * LENGTH:
                return _json({"error": f"the statement is longer than {LENGTH} characters"}, status=413)
        try:
            sql = orjson.loads(bytes(body))["sql"]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError('SQL is taken as {"sql": "SELECT …"}') from error
        if not isinstance(sql, str):
            raise InputError('SQL is taken as {"sql": "SELECT …"}')
        return _json(await run_in_threadpool(run_query, results.database, sql))

    return app


def viewer_address(row: dict[str, Any], store: DicomStore) -> str:
    """The address at which the viewer opens a series, its segmentation on top and its report beside it, where
    there are such."""
    series = row["series_uid"]
    segmentation, report = store.segmentation(series), store.report(series)
    listed = ",".join(uid for uid in (series, segmentation, report) if uid is not None)
    shown = {"StudyInstanceUIDs": row["study_uid"], "SeriesInstanceUIDs": listed}
    if segmentation is not None:
        shown["initialSeriesInstanceUID"] = segmentation
    return f"/viewer?{urlencode(shown, safe=',')}"


def _whole(request: Request, name: str, otherwise: int) -> int:
    text = request.query_params.get(name, "")
    if text and not (text.isdecimal() and len(text) < 9):
        raise InputError(f"{name} is a whole number")
    return int(text or otherwise)


def _json(content: Any, *, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _about(results: Results, folder: Path, *, charts: bool, viewer: bool, slices: bool) -> dict[str, Any]:
    """What the page needs to know of the run, once."""
    try:
        run = read_json(folder / "run.json", folder)
    except InputUnreadable:
        run = None
    statuses = dict(results.all("SELECT status, count(*) FROM everything GROUP BY 1"))
    warnings = results.all(
        "SELECT DISTINCT unnest(string_split(warnings, ';')) AS w FROM everything "
        "UNION SELECT DISTINCT code FROM everything ORDER BY 1"
    )
    clinical = results.clinical
    return {
        "version": __version__,
        "name": folder.resolve().name,
        "made_with": run.get("made_with") if isinstance(run, dict) else None,
        "statuses": statuses,
        "time_point_from": dict(results.all("SELECT time_point_from, count(*) FROM everything GROUP BY 1")),
        "filters": [asdict(one) for one in results.filters.values()],
        "columns": [_described(column) for column in results.columns.values()],
        "results": [column.name for column in results.results],
        "usual": views.usual(results),
        "clinical": {
            "columns": [column.name for column in clinical.columns],
            "left_out": clinical.left_out,
            "rows": clinical.rows,
            "matched": clinical.matched,
        },
        "meanings": {code: views.meaning(code) for (code,) in warnings if code and views.meaning(code)},
        "charts": charts,
        "viewer": viewer,
        "slices": slices,
    }


def _described(column: Described) -> dict[str, Any]:
    """A column for the page; whether it has a histogram is told by `classes`, the name of its class's."""
    classes = CLASSES[column.name].name if column.name in CLASSES else ""
    return {
        "name": column.name,
        "label": column.title,
        "unit": column.unit,
        "meaning": column.meaning,
        "kind": column.kind.__name__,
        "type": TYPES[column.kind],
        "result": column.leads,
        "groups": column.groups,
        "classes": classes,
    }
