"""A real Orthanc for tests: a PACS of its own, in a temporary folder, for callers on this machine alone.

Orthanc 1.10 listens on every address and cannot be told otherwise; what it can is to check who calls, and
it does: its HTTP server answers only loopback addresses and only the registered user
(``RemoteAccessAllowed: false``), and its DICOM server takes an association only from the titles in
`Orthanc.callers`, at 127.0.0.1, for the right called title (``DicomCheckModalityHost``,
``DicomCheckCalledAet``, nothing always allowed). HTTPS outside, WebDAV, Lua and sending are off.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

PROGRAM = shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/usr/bin") or ""
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "tester", "c0rrect-horse"
TITLE = "ORTHANC"


def need_orthanc() -> None:
    """Skip the test where Orthanc or its DICOMweb plugin is not installed."""
    if not PROGRAM or not PLUGIN.is_file():
        pytest.skip("needs Orthanc with DICOMweb (Debian: orthanc, orthanc-dicomweb)")


def free_port() -> int:
    """A port that the kernel has to give."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Orthanc:
    """A running Orthanc.

    Args:
        folder: For its configuration, log and storage.
        callers: AE titles that may store over DIMSE.
        options: Further options of its configuration.

    Attributes:
        http: Its REST API.
        dicomweb: Its DICOMweb root.
        address: ``AET@HOST:PORT`` of its DICOM server.
    """

    def __init__(self, folder: Path, *, callers: tuple[str, ...] = ("DEEPCAC2",), **options: Any) -> None:
        need_orthanc()
        self.folder, self._callers, self._options = folder, callers, options
        self.port, self.dicom_port = free_port(), free_port()
        self.http = f"http://127.0.0.1:{self.port}"
        self.dicomweb = f"{self.http}/dicom-web"
        self.address = f"{TITLE}@127.0.0.1:{self.dicom_port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, with what its storage holds, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        modalities = {
            title: {"AET": title, "Host": "127.0.0.1", "Port": 1, "AllowStore": True, "AllowEcho": True}
            for title in self._callers
        }
        configuration = {
            "Name": "deepcac2-test",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "TemporaryDirectory": str(self.folder),
            "HttpPort": self.port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "WebDavEnabled": False,
            "DicomAet": TITLE,
            "DicomPort": self.dicom_port,
            "DicomCheckCalledAet": True,
            "DicomCheckModalityHost": True,
            "DicomModalities": modalities,
            "DicomAlwaysAllowEcho": False,
            "DicomAlwaysAllowStore": False,
            "DicomAlwaysAllowFind": False,
            "DicomAlwaysAllowGet": False,
            "DicomAlwaysAllowMove": False,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
            **self._options,
        }
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(configuration))
        with (self.folder / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen([PROGRAM, str(path)], stdout=log, stderr=log, cwd=self.folder)
        until = time.monotonic() + 60
        while True:
            try:
                self.get("/system")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if self._process.poll() is not None or time.monotonic() > until:
                    text = (self.folder / "orthanc.log").read_text(errors="replace")
                    raise RuntimeError(f"Orthanc did not start: {text[-2000:]}") from None
                time.sleep(0.02)

    def stop(self, *, kill: bool = False) -> None:
        """End it; what it stored stays, and `start` brings it back at the same ports."""
        if self._process is not None:
            self._process.kill() if kill else self._process.terminate()
            self._process.wait(60)
            self._process = None

    def open(
        self,
        path: str,
        headers: dict[str, str] | None = None,
        method: str = "GET",
        data: bytes | None = None,
    ) -> Any:
        """The answer to a request of the registered user."""
        request = urllib.request.Request(self.http + path, data, method=method, headers=headers or {})
        secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request.add_header("Authorization", f"Basic {secret}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return opener.open(request, timeout=60)

    def _request(self, method: str, path: str, data: bytes | None = None) -> bytes:
        with self.open(path, method=method, data=data) as response:
            return bytes(response.read())

    def post(self, path: str, data: bytes) -> Any:
        """JSON that it answers to what is given to its REST API."""
        return json.loads(self._request("POST", path, data))

    def get(self, path: str) -> Any:
        """JSON from its REST API."""
        return json.loads(self._request("GET", path))

    def stored(self) -> dict[str, bytes]:
        """What it holds: SOPInstanceUID → the file."""
        return {
            str(i["MainDicomTags"]["SOPInstanceUID"]): self._request("GET", f"/instances/{i['ID']}/file")
            for i in self.get("/instances?expand")
        }

    def clear(self) -> None:
        """Delete all that it holds."""
        for patient in self.get("/patients"):
            self._request("DELETE", f"/patients/{patient}")
