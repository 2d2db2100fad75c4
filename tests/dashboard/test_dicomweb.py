"""The DICOMweb service, asked by dicomweb-client, against the files as pydicom reads them."""

from __future__ import annotations

import http.client
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from PIL import Image
from pydicom.dataset import Dataset

from deepcac2.dashboard import media
from deepcac2.dashboard.pixels import FileFrames
from deepcac2.dashboard.store import DicomStore
from deepcac2.dashboard.table import Results
from deepcac2.dicom.series import SliceRef
from deepcac2.errors import InputUnreadable

SYNTAXES = "dicom-zoo/one-slice-16-syntaxes"


@pytest.fixture(scope="module")
def client(served: str) -> DICOMwebClient:
    return DICOMwebClient(url=f"{served}/dicomweb")


def get(base: str, path: str, **headers: str) -> tuple[int, str, bytes]:
    """Status, content type and body, the path sent as it stands."""
    address = urlsplit(base)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Type", ""), answer.read()
    finally:
        connection.close()


def value(match: dict[str, Any], tag: str) -> Any:
    return match[tag].get("Value", [None])[0]


def instance_path(case: Any, index: int = 0) -> str:
    uid = list(case.files)[index]
    return f"/dicomweb/studies/{case.study}/series/{case.series}/instances/{uid}"


# --- search -----------------------------------------------------------------------------------------------


def test_a_study_is_found_by_patient_and_uid(client: DICOMwebClient, viewer_case: Any) -> None:
    for filters in (
        {"PatientID": "SIM-0003"},
        {"PatientID": "SIM-*"},
        {"StudyInstanceUID": viewer_case.study},
        {"ModalitiesInStudy": "SEG"},
        {"StudyDate": "19000101-20991231"},
    ):
        (study,) = client.search_for_studies(search_filters=filters)
        assert value(study, "0020000D") == viewer_case.study
        assert sorted(study["00080061"]["Value"]) == ["CT", "SEG"]
        assert value(study, "00201206") == 3
        assert value(study, "00201208") == len(viewer_case.files) + 5 + 1
    for filters in ({"PatientID": "SIM-000"}, {"StudyInstanceUID": "1.2.3"}, {"StudyDate": "19000101"}):
        assert client.search_for_studies(search_filters=filters) == []


def test_series_are_those_of_the_results(client: DICOMwebClient, viewer_case: Any) -> None:
    """The two of the table and the SEG, not the one that merely lies beside them."""
    found = {value(s, "0020000E"): s for s in client.search_for_series(viewer_case.study)}
    assert found.keys() == {viewer_case.series, viewer_case.seg, viewer_case.compressed}
    assert value(found[viewer_case.seg], "00080060") == "SEG"
    assert value(found[viewer_case.series], "00201209") == len(viewer_case.files)
    (seg,) = client.search_for_series(viewer_case.study, search_filters={"Modality": "SEG"})
    assert value(seg, "0020000E") == viewer_case.seg
    for uid in (viewer_case.seg, viewer_case.series):  # without saying of which study
        (one,) = client.search_for_series(search_filters={"SeriesInstanceUID": uid})
        assert value(one, "0020000E") == uid


def test_instances_come_in_pages(client: DICOMwebClient, viewer_case: Any, served: str) -> None:
    everything = client.search_for_instances(viewer_case.study, viewer_case.series)
    assert [value(i, "00080018") for i in everything] == list(viewer_case.files)
    part = client.search_for_instances(viewer_case.study, viewer_case.series, limit=7, offset=80)
    assert part == everything[80:87]
    path = f"/dicomweb/studies/{viewer_case.study}/series/{viewer_case.series}/instances?limit=7"
    connection = http.client.HTTPConnection(urlsplit(served).netloc)
    connection.request("GET", path)
    assert "more results" in connection.getresponse().headers["Warning"]
    connection.close()


def test_the_report_is_a_series_of_the_study(
    named_case: Any, viewer_case: Any, serve: Any, viewer_app: Any
) -> None:
    """Found, told and handed out as the SEG is: all that it measures, and nobody's name."""
    base = serve(viewer_app(replace(viewer_case, results=named_case.results)))
    client = DICOMwebClient(url=f"{base}/dicomweb")
    file = pydicom.dcmread(named_case.sr_file)
    (study,) = client.search_for_studies(search_filters={"ModalitiesInStudy": "SR"})
    assert sorted(study["00080061"]["Value"]) == ["CT", "SEG", "SR"]
    (series,) = client.search_for_series(viewer_case.study, search_filters={"Modality": "SR"})
    assert value(series, "0020000E") == file.SeriesInstanceUID
    (instance,) = client.search_for_instances(viewer_case.study, file.SeriesInstanceUID)
    assert value(instance, "00080016") == file.SOPClassUID
    (content,) = client.retrieve_series_metadata(viewer_case.study, file.SeriesInstanceUID)
    whole = client.retrieve_instance(viewer_case.study, file.SeriesInstanceUID, file.SOPInstanceUID)
    assert file.PatientName == viewer_case.secrets[0]
    for served_set in (Dataset.from_json(content), whole):
        assert served_set.ContentSequence == file.ContentSequence
        assert served_set.CodingSchemeIdentificationSequence == file.CodingSchemeIdentificationSequence
        assert not any(secret in str(served_set) for secret in viewer_case.secrets)


# --- metadata and instances -------------------------------------------------------------------------------


def same(content: dict[str, Any], file: Path) -> None:
    """All elements are equal, but for the pixels."""
    expected = pydicom.dcmread(file, stop_before_pixels=True)
    assert "BulkDataURI" in content.pop("7FE00010")
    served_set = Dataset.from_json(content)
    assert [e.tag for e in served_set] == [e.tag for e in expected]
    for element in expected:
        assert served_set[element.tag] == element, element.keyword


def test_metadata_is_that_of_the_files(served_with_names: str, viewer_case: Any) -> None:
    client = DICOMwebClient(url=f"{served_with_names}/dicomweb")
    found = client.retrieve_series_metadata(viewer_case.study, viewer_case.series)
    assert len(found) == len(viewer_case.files)
    for content, file in zip(found[::30], list(viewer_case.files.values())[::30], strict=True):
        same(content, file)
    (seg,) = client.retrieve_series_metadata(viewer_case.study, viewer_case.seg)
    same(seg, viewer_case.seg_file)
    assert len(client.retrieve_study_metadata(viewer_case.study)) == len(viewer_case.files) + 6


def test_bulk_data_is_where_metadata_says(served: str, viewer_case: Any) -> None:
    _, _, body = get(served, f"{instance_path(viewer_case, 3)}/metadata")
    address = json.loads(body)[0]["7FE00010"]["BulkDataURI"]
    assert address.startswith(f"{served}/dicomweb/studies/")
    pixels = pydicom.dcmread(list(viewer_case.files.values())[3]).PixelData
    for accept in ("application/octet-stream", "multipart/related; type=application/octet-stream"):
        assert pixels in get(served, urlsplit(address).path, Accept=accept)[2]


def test_instances_are_the_files(served_with_names: str, viewer_case: Any) -> None:
    for series, uid, file in (
        (viewer_case.series, *next(iter(viewer_case.files.items()))),
        (viewer_case.seg, pydicom.dcmread(viewer_case.seg_file).SOPInstanceUID, viewer_case.seg_file),
    ):
        path = f"/dicomweb/studies/{viewer_case.study}/series/{series}/instances/{uid}"
        status, kind, body = get(served_with_names, path, Accept="application/dicom")
        assert (status, kind) == (200, "application/dicom")
        assert body == file.read_bytes()


def test_instances_without_names_have_the_same_pixels(client: DICOMwebClient, viewer_case: Any) -> None:
    found = client.retrieve_series(viewer_case.study, viewer_case.series)
    assert len(found) == len(viewer_case.files)
    for ds in found[::30]:
        expected = pydicom.dcmread(viewer_case.files[ds.SOPInstanceUID])
        assert ds.PixelData == expected.PixelData
        assert ds.file_meta.TransferSyntaxUID == expected.file_meta.TransferSyntaxUID
        hidden = {e.keyword for e in expected if not e.tag.is_private and ds[e.tag] != e}
        assert hidden == {
            "PatientName", "PatientBirthDate", "ReferringPhysicianName", "InstitutionName", "AccessionNumber",
            "PersonIdentificationCodeSequence", "RequestAttributesSequence", "ReferencedStudySequence",
            "StudyID",
        }  # fmt: skip
        assert ds.PatientName == ""
        assert "PatientBirthDate" in ds  # type 2: there, and empty
        assert ds.ReferencedStudySequence[0].StudyInstanceUID == viewer_case.study
    (seg,) = client.retrieve_series(viewer_case.study, viewer_case.seg)
    assert (seg.pixel_array == pydicom.dcmread(viewer_case.seg_file).pixel_array).all()


def test_no_answer_names_the_patient(served: str, served_with_names: str, viewer_case: Any) -> None:
    study, series, one = (
        f"/dicomweb/studies/{viewer_case.study}",
        f"/dicomweb/studies/{viewer_case.study}/series/{viewer_case.series}",
        instance_path(viewer_case),
    )
    paths = [
        "/dicomweb/studies", f"/dicomweb/studies?StudyInstanceUID={viewer_case.study}", f"{study}/series",
        "/dicomweb/instances", f"{study}/metadata", f"{series}/metadata", one, study, f"{one}/frames/1",
        f"{study}/series/{viewer_case.seg}", f"{study}/series/{viewer_case.compressed}",
    ]  # fmt: skip
    for path in paths:
        status, _, body = get(served, path)
        assert status == 200
        assert not [s for s in viewer_case.secrets if s.encode() in body], path
    shown = get(served_with_names, one)[2] + get(served_with_names, f"{series}/metadata")[2]
    assert not [s for s in viewer_case.secrets if s.encode() not in shown]


# --- frames and pictures ----------------------------------------------------------------------------------


def test_frames_are_the_pixels(client: DICOMwebClient, viewer_case: Any, served: str) -> None:
    uid, file = list(viewer_case.files.items())[40]
    (frame,) = client.retrieve_instance_frames(viewer_case.study, viewer_case.series, uid, [1])
    expected = pydicom.dcmread(file).pixel_array
    assert (np.frombuffer(frame, expected.dtype).reshape(expected.shape) == expected).all()
    status, kind, body = get(served, f"{instance_path(viewer_case, 40)}/frames/1", Accept="*/*")
    assert (status, kind.split(";")[0]) == (200, "multipart/related")
    assert frame in body


def test_frames_of_a_mask_are_its_bits(client: DICOMwebClient, viewer_case: Any) -> None:
    ds = pydicom.dcmread(viewer_case.seg_file)
    wanted = [1, ds.NumberOfFrames // 2, ds.NumberOfFrames]
    frames = client.retrieve_instance_frames(viewer_case.study, viewer_case.seg, ds.SOPInstanceUID, wanted)
    for number, frame in zip(wanted, frames, strict=True):
        bits = np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")
        assert (bits.reshape(ds.Rows, ds.Columns) == ds.pixel_array[number - 1]).all()


def test_compressed_frames_come_as_stored_or_decoded(viewer_case: Any, served: str) -> None:
    client = DICOMwebClient(url=f"{served}/dicomweb")
    found = client.search_for_instances(viewer_case.study, viewer_case.compressed)
    path = f"/dicomweb/studies/{viewer_case.study}/series/{viewer_case.compressed}/instances"
    path += f"/{value(found[0], '00080018')}"
    ds = pydicom.dcmread(io.BytesIO(get(served, path, Accept="application/dicom")[2]))
    status, kind, body = get(served, f"{path}/frames/1", Accept="image/dicom-rle")
    assert (status, kind) == (200, "image/dicom-rle; transfer-syntax=1.2.840.10008.1.2.5")
    assert body == pydicom.encaps.get_frame(ds.PixelData, 0, number_of_frames=1)
    as_ohif = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
    assert body in get(served, f"{path}/frames/1", Accept=as_ohif)[2]
    status, kind, body = get(served, f"{path}/frames/1", Accept="application/octet-stream")
    assert (status, kind) == (200, "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1")
    assert body == ds.pixel_array.tobytes()


def test_frames_of_every_transfer_syntax(shared_data: Path) -> None:
    """Also big endian, deflated and compressed: decoded they are what pydicom makes of the file."""
    seen = set()
    for file in sorted((shared_data / SYNTAXES).glob("**/CTImage.dcm*")):
        ds = pydicom.dcmread(file)
        syntax = ds.file_meta.TransferSyntaxUID
        frames = FileFrames(SliceRef(path=file, transfer_syntax_uid=syntax))
        assert frames.syntax == (syntax if syntax.is_encapsulated else media.NATIVE)
        assert frames.stored(0)
        try:
            expected = ds.pixel_array
        except (NotImplementedError, RuntimeError):
            continue  # 12-bit lossy JPEG
        got = np.frombuffer(frames.decoded(0), expected.dtype.newbyteorder("<"))
        assert (got.reshape(expected.shape) == expected).all(), syntax.name
        seen.add(str(syntax))
    assert seen >= {
        f"1.2.840.10008.1.2{s}" for s in ("", ".1", ".2", ".1.99", ".5", ".4.70", ".4.80", ".4.90")
    }


def test_pictures(served: str, viewer_case: Any) -> None:
    path = instance_path(viewer_case, 45)
    ds = pydicom.dcmread(list(viewer_case.files.values())[45])
    hu = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    status, kind, body = get(served, f"{path}/rendered?window=40,400,linear", Accept="image/png")
    assert (status, kind) == (200, "image/png")
    grey = np.asarray(Image.open(io.BytesIO(body)))
    assert grey.shape == hu.shape
    assert (np.abs(grey - (np.clip(hu, -160, 240) + 160) / 400 * 255) <= 1).all()
    status, kind, body = get(served, f"{path}/frames/1/rendered?viewport=100,80", Accept="image/*")
    assert (status, kind) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(body)).size == (80, 80)
    for where in (path, path.rpartition("/instances")[0], f"/dicomweb/studies/{viewer_case.study}"):
        status, kind, body = get(served, f"{where}/thumbnail", Accept="image/jpeg")
        assert (status, kind) == (200, "image/jpeg")
        assert max(Image.open(io.BytesIO(body)).size) <= 256
    seg = f"/dicomweb/studies/{viewer_case.study}/series/{viewer_case.seg}/rendered?accept=image/png"
    assert set(np.unique(np.asarray(Image.open(io.BytesIO(get(served, seg)[2]))))) <= {0, 255}


# --- what is refused --------------------------------------------------------------------------------------


def test_what_is_not_there(served: str, viewer_case: Any) -> None:
    stranger = str(pydicom.dcmread(viewer_case.ct / "a" / "stranger.dcm").SeriesInstanceUID)
    study = f"/dicomweb/studies/{viewer_case.study}"
    for path in (
        "/dicomweb/studies/1.2.3/metadata",
        "/dicomweb/studies/1.2.3",
        f"{study}/series/1.2.3/metadata",
        f"{study}/series/{stranger}/metadata",  # under --ct, and not in the results
        f"/dicomweb/studies/1.2.3/series/{viewer_case.series}/metadata",
        f"{study}/series/{viewer_case.seg}/instances/{next(iter(viewer_case.files))}",
        f"{instance_path(viewer_case)}/frames/2",
        f"{instance_path(viewer_case)}/bulkdata/00080060",
    ):
        status, kind, body = get(served, path)
        assert (status, kind) == (404, "text/plain; charset=utf-8"), path
        assert body.count(b"\n") == 1
        assert len(body) < 120


@pytest.mark.parametrize(
    "path",
    [
        "/dicomweb/studies/..%2f..%2fetc%2fpasswd/metadata",
        "/dicomweb/studies/%2e%2e/series/%2e%2e/metadata",
        "/dicomweb/studies/../../../../etc/passwd",
        "/dicomweb/studies/1.2.3%00/metadata",
        "/dicomweb/studies/1.2.3'%20OR%201=1/metadata",
        f"/dicomweb/studies/{'1' * 65}/metadata",
        "/dicomweb/studies?StudyInstanceUID=../x",
        "/dicomweb/studies?limit=many",
        "/dicomweb/studies?StudyDate=yesterday",
        "/api/cases/..%2f..%2fetc/slices",
        "/api/cases/%2e%2e/slices/0.png",
    ],
)
def test_no_request_becomes_a_path(served: str, path: str) -> None:
    status, _, body = get(served, path)
    assert status in (400, 404), path
    assert b"root:" not in body


def test_frame_numbers_and_elements_are_checked(served: str, viewer_case: Any) -> None:
    for path in (
        "frames/0",
        "frames/x",
        "frames/1,",
        "bulkdata/PixelData",
        "rendered?window=1",
        "rendered?viewport=0,1",
    ):
        assert get(served, f"{instance_path(viewer_case)}/{path}")[0] in (400, 404), path


def test_types_that_are_not_offered(served: str, viewer_case: Any) -> None:
    one = instance_path(viewer_case)
    for path, accept in (
        (f"{one}/metadata", "application/dicom+xml"),
        (f"{one}/frames/1", "video/mp4"),
        (f"{one}/rendered", "image/gif"),
        (one, "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.90"),
        (one.rpartition("/instances")[0], "application/dicom"),
    ):
        assert get(served, path, Accept=accept)[0] == 406, path
    for path, accept in (
        (f"{one}/metadata", "application/json"),
        (f"{one}/metadata", ""),
        (one, 'multipart/related; type="application/dicom"; transfer-syntax=*'),
        (one, "multipart/related; type=application/dicom"),
        (f"{one}/rendered", "text/html, image/png;q=0.5"),
    ):
        assert get(served, path, Accept=accept)[0] == 200, path


@pytest.fixture(scope="module")
def viewer_table(viewer_case: Any) -> Iterator[Results]:
    with Results(viewer_case.results) as table:
        yield table


def test_accept_headers() -> None:
    ranges = media.parse(
        'text/html;q=0.2, multipart/related; type="application/dicom"; transfer-syntax=*, nonsense'
    )
    assert [(r.kind, r.inner, r.transfer_syntax) for r in ranges] == [
        ("multipart/related", "application/dicom", "*"),
        ("text/html", "*/*", ""),
    ]
    assert (
        media.choose(media.parse("image/png;q=0.1, image/jpeg"), ["image/png", "image/jpeg"]) == "image/jpeg"
    )
    assert media.choose(media.parse("image/png;q=0"), ["image/png"]) is None


def test_the_ct_must_be_there(tmp_path: Path, viewer_table: Results) -> None:
    with pytest.raises(InputUnreadable, match="does not exist"):
        DicomStore(viewer_table, tmp_path / "nowhere")


def test_without_the_ct_what_the_run_made_is_served(viewer_case: Any, viewer_table: Results) -> None:
    store = DicomStore(viewer_table, None)
    assert [one.series_uid for one in store.everything(viewer_case.study)] == [viewer_case.seg]
    assert store.segmentation(viewer_case.series) == viewer_case.seg
    assert store.segmentation(viewer_case.compressed) is None
    assert store.segmentation("1.2.3") is None


# --- size -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc to see the memory")
def test_a_release_needs_little_memory(tmp_path: Path) -> None:
    """130,000 series: table read, studies found, and no torch on the way."""
    code = f"""
import sys
from pathlib import Path
from deepcac2.dashboard import dicomweb, slices, viewer
from deepcac2.dashboard.store import DicomStore
from deepcac2.dashboard.table import Results
from fastapi import FastAPI
from fastapi.testclient import TestClient
store = DicomStore(Results(Path({str(tmp_path)!r})), None)
app = FastAPI()
app.include_router(dicomweb.router(store), prefix='/dicomweb')
client = TestClient(app)
for path in ('studies?limit=50&offset=50000', 'studies?PatientID=*77', 'studies/1.2.77'):
    client.get('/dicomweb/' + path)
assert len(client.get('/dicomweb/studies?limit=50').json()) == 50
assert not {{'torch', 'monai', 'nnunetv2'}} & set(sys.modules)
status = Path('/proc/self/status').read_text()  # ru_maxrss is also that of the process it was forked from
print(int(status.split('VmHWM:')[1].split()[0]) // 1024)
"""
    import pyarrow as pa
    from pyarrow import parquet

    count = 130_000
    uid = "1.2.826.0.1.3680043.8.498.8801951345455913554638941859638"
    parquet.write_table(
        pa.table(
            {
                "series_uid": [f"{uid}{i:06d}" for i in range(count)],
                "study_uid": [f"{uid[:-1]}9{i // 2:06d}" for i in range(count)],
                "patient_id": [f"P{i // 5}" for i in range(count)],
                "study_date": ["20000101"] * count,
                "series_description": ["2,OPA,GE,LSULTRA,STANDARD,380,2.5,120,40,na,1.5"] * count,
                "status": ["scored"] * count,
                "n_slices": [140] * count,
                "folder": [f"P{i // 5}/{uid}{i:06d}" for i in range(count)],
            }
        ),
        tmp_path / "results.parquet",
        row_group_size=5000,  # as a run writes it
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 260
