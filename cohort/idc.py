"""The tables of the Imaging Data Commons (IDC) as a header index, so that the rules judge them too.

``idc_index`` has a row for each series and is shipped with the package ``idc-index-data``. ``ct_index`` and
``volume_geometry_index`` are two further tables of the same release, which ``idc-index`` fetches; they are
used where they are there. What no table says cannot be judged: those criteria are left out, and named.

NLST's SeriesDescription holds eleven fields, such as ``0,OPA,GE,LSPLUS,STANDARD,360,2.5,120,80,0.1,1.5``:
visit, kind of image, maker, scanner, kernel, field of view (mm), slice thickness (mm), kV, and three more. In
22 of 203,087 series the field of view is ``1,024``, which makes twelve.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, InputUnreadable
from ..system.foreign import foreign
from .index import COLUMNS

if TYPE_CHECKING:
    import duckdb

NLST = "nlst"
MAIN, CT, GEOMETRY = "idc_index", "ct_index", "volume_geometry_index"
_NEEDED = {
    MAIN: (
        *("collection_id", "analysis_result_id", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"),
        *("Modality", "StudyDate", "SeriesDescription", "Manufacturer", "ManufacturerModelName"),
        *("instanceCount", "series_size_MB"),
    ),
    CT: (
        *(
            "SeriesInstanceUID",
            "ImageType",
            "PixelSpacing_row_mm",
            "Rows",
            "Columns",
            "SliceThickness",
            "KVP",
        ),
        "ConvolutionKernel",
    ),
    GEOMETRY: (
        *("SeriesInstanceUID", "single_orientation", "unique_slice_positions", "consistent_pixel_spacing"),
        *("consistent_image_dimensions", "slice_spacing_mm"),
    ),
}
"""Columns by table."""

UNKNOWN = {
    CT: ("rows", "columns", "pixel_spacing"),
    GEOMETRY: ("n_positions", "n_sizes", "n_spacings", "n_orientations", "increment"),
}
"""Columns of the header index that nothing says without the table."""


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Where the tables lie.

    Attributes:
        main: ``idc_index``.
        ct, geometry: ``ct_index`` and ``volume_geometry_index``; None: not there.
    """

    main: Path
    ct: Path | None = None
    geometry: Path | None = None

    @property
    def unknown(self) -> frozenset[str]:
        """Columns of the header index that they leave empty in every row."""
        absent = {CT: self.ct, GEOMETRY: self.geometry}
        return frozenset(name for table, path in absent.items() if path is None for name in UNKNOWN[table])


def find_tables(place: Path | None = None) -> Tables:
    """The tables in a folder, or those that are installed with ``idc-index-data``.

    Args:
        place: A folder with ``idc_index.parquet``, and where they are there ``ct_index.parquet`` and
            ``volume_geometry_index.parquet``; None: the package's.

    Raises:
        InputError: The package is not installed.
        InputUnreadable: There is no such folder or table.
    """
    if place is None:
        try:
            from idc_index_data import IDC_INDEX_PARQUET_FILEPATH as shipped
        except ImportError as error:
            raise InputError(
                "the tables of IDC need the package idc-index-data: .venv/bin/pip install -e '.[idc]', or "
                "name the folder where its idc_index.parquet lies"
            ) from error
        place = Path(shipped).parent
    main = place / f"{MAIN}.parquet"
    if not main.is_file():
        raise InputUnreadable(f"{place} has no {MAIN}.parquet: give the folder of IDC's tables")
    ct, geometry = (
        path if (path := place / f"{name}.parquet").is_file() else None for name in (CT, GEOMETRY)
    )
    return Tables(main=main, ct=ct, geometry=geometry)


def create_view(database: duckdb.DuckDBPyConnection, tables: Tables, collection: str) -> None:
    """Make the view ``found`` of a header index (`cohort.index.COLUMNS`) from the tables.

    Where ``ct_index`` is there, thickness, kernel, kV and ImageType are those of one image's header, else
    what NLST's SeriesDescription says. ``n_positions`` is ``n_images`` where all slices lie at different
    places, and ``n_sizes``, ``n_spacings`` and ``n_orientations`` are 1 where there is one; else they are
    empty, as the tables do not count. `Tables.unknown` columns are empty.

    Args:
        database: DuckDB.
        collection: Such as ``nlst``: its CT series and others, without analysis results.

    Raises:
        InputUnreadable: A table is no Parquet file.
        InputError: A table lacks a column, or has no series of the collection.
    """
    for name, path in ((MAIN, tables.main), (CT, tables.ct), (GEOMETRY, tables.geometry)):
        if path is None:
            continue
        with foreign(str(path), fault="is no table of IDC"):
            database.read_parquet(str(path)).create_view(name)
        present = [row[0] for row in database.sql(f"DESCRIBE {name}").fetchall()]
        if missing := [column for column in _NEEDED[name] if column not in present]:
            raise InputError(f"{path} has no column {missing[0]!r}: give the {name} of IDC")
    if tables.ct is None:
        database.sql(f"CREATE VIEW {CT} AS SELECT {_empty(CT)}")
    if tables.geometry is None:
        database.sql(f"CREATE VIEW {GEOMETRY} AS SELECT {_empty(GEOMETRY)}")
    with foreign(str(tables.main), fault="is no table of IDC"):
        database.execute(f"CREATE TABLE found AS {_FOUND}", [collection])
    if not database.sql("SELECT count(*) FROM found").fetchall()[0][0]:
        raise InputError(f"{tables.main} has no series of the collection {collection!r}")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A series in IDC.

    Attributes:
        place: ``<PatientID>/<StudyInstanceUID>/<SeriesInstanceUID>``.
        files, size: Number of its files, and their bytes.
    """

    place: Path
    files: int
    size: int


def stored(tables: Tables, uids: Iterable[str]) -> dict[str, Stored]:
    """What IDC holds of series, those that it has.

    Args:
        uids: SeriesInstanceUIDs.

    Raises:
        InputUnreadable: The table cannot be read.
        InputError: A name in it cannot be that of a folder.
    """
    import duckdb

    with duckdb.connect() as database, foreign(str(tables.main), fault="is no table of IDC"):
        database.read_parquet(str(tables.main)).create_view(MAIN)
        database.execute("CREATE TABLE wanted AS SELECT unnest($1::VARCHAR[]) AS uid", [list(uids)])
        rows = database.sql(
            "SELECT SeriesInstanceUID, PatientID, StudyInstanceUID, instanceCount, "
            f"round(series_size_MB * 1e6)::BIGINT FROM {MAIN} JOIN wanted ON uid = SeriesInstanceUID"
        ).fetchall()
        found = {}
        for uid, patient, study, files, size in rows:
            for name in (patient, study, uid):
                if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
                    raise InputError(f"{tables.main}: {name!r} is no name for a folder")
            found[uid] = Stored(place=Path(patient, study, uid), files=files, size=size)
        return found


def _empty(name: str) -> str:
    """The columns of a table that is not there, without a row."""
    kinds = {"SeriesInstanceUID": "VARCHAR", "ImageType": "VARCHAR[]", "ConvolutionKernel": "VARCHAR[]"}
    kinds |= {"Rows": "BIGINT", "Columns": "BIGINT"}
    default = "BOOLEAN" if name == GEOMETRY else "DOUBLE"
    kinds["slice_spacing_mm"] = "DOUBLE"
    columns = (f'NULL::{kinds.get(column, default)} AS "{column}"' for column in _NEEDED[name])
    return f"{', '.join(columns)} WHERE false"


_KINDS = (
    {"O": "ORIGINAL", "D": "DERIVED"},
    {"P": "PRIMARY", "S": "SECONDARY"},
    {"A": "AXIAL", "L": "LOCALIZER"},
)
"""What the letters of the second field stand for, as far as is known; others stay letters."""


def _image_type() -> str:
    """SQL: the letters of the field ``kind`` as an ImageType, ``OPA`` as ORIGINAL, PRIMARY and AXIAL."""
    parts = []
    for place, known in enumerate(_KINDS, start=1):
        letter = f"kind[{place}]"
        cases = " ".join(f"WHEN '{short}' THEN '{word}'" for short, word in known.items())
        parts.append(f"CASE {letter} {cases} ELSE nullif({letter}, '') END")
    return f"array_to_string([p FOR p IN [{', '.join(parts)}] IF p IS NOT NULL], '\\')"


_DESCRIBED = """
    SELECT *,
      CASE WHEN fields[1] IN ('0', '1', '2') THEN 'T' || fields[1] ELSE '' END AS visit,
      coalesce(fields[2], '') AS kind, coalesce(fields[5], '') AS kernel_said,
      try_cast(fields[7 + extra] AS DOUBLE) AS thickness_said,
      try_cast(fields[8 + extra] AS DOUBLE) AS kvp_said
    FROM (
      SELECT *, CASE WHEN len(parts) = 12 AND len(parts[7]) = 3 THEN 1 ELSE 0 END AS extra,
        CASE WHEN len(parts) = 11 OR (len(parts) = 12 AND len(parts[7]) = 3) THEN parts END AS fields
      FROM (
        SELECT *, string_split(SeriesDescription, ',') AS parts FROM idc_index
        WHERE collection_id = $1 AND analysis_result_id IS NULL
      )
    )
"""
"""The series with the fields of their description; none where it has not that form."""

_VALUES = {
    "patient_id": "PatientID",
    "study_uid": "StudyInstanceUID",
    "series_uid": "d.SeriesInstanceUID",
    "modality": "Modality",
    "study_date": "replace(coalesce(StudyDate, ''), '-', '')",
    "time_point": "visit",
    "series_description": "coalesce(SeriesDescription, '')",
    "manufacturer": "coalesce(Manufacturer, '')",
    "model_name": "coalesce(ManufacturerModelName, '')",
    "kernel": "coalesce(array_to_string(c.ConvolutionKernel, '\\'), kernel_said)",
    "kvp": "coalesce(c.KVP, kvp_said)",
    "image_type": f"coalesce(array_to_string(c.ImageType, '\\'), {_image_type()})",
    "n_images": "instanceCount",
    "n_positions": "CASE WHEN g.unique_slice_positions THEN instanceCount END",
    "thickness_min": "coalesce(c.SliceThickness, thickness_said)",
    "thickness_max": "coalesce(c.SliceThickness, thickness_said)",
    "increment": "g.slice_spacing_mm",
    "n_sizes": "CASE WHEN g.consistent_image_dimensions THEN 1 END",
    "n_spacings": "CASE WHEN g.consistent_pixel_spacing THEN 1 END",
    "n_orientations": "CASE WHEN g.single_orientation THEN 1 END",
    "rows": 'c."Rows"',
    "columns": 'c."Columns"',
    "pixel_spacing": "c.PixelSpacing_row_mm",
}
"""Column of the header index → SQL; others are empty."""


def _selected(columns: Iterable[str]) -> str:
    kinds = {"string": "VARCHAR", "double": "DOUBLE", "int64": "BIGINT"}
    return ", ".join(f'({_VALUES.get(name, "NULL")})::{kinds[COLUMNS[name]]} AS "{name}"' for name in columns)


_FOUND = f"""
    SELECT {_selected(COLUMNS)} FROM ({_DESCRIBED}) AS d
    LEFT JOIN {CT} AS c ON c.SeriesInstanceUID = d.SeriesInstanceUID
    LEFT JOIN {GEOMETRY} AS g ON g.SeriesInstanceUID = d.SeriesInstanceUID
"""
