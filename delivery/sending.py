"""Sending DICOM files to another system, as they are: STOW-RS (DICOMweb) or C-STORE (DIMSE).

One instance at a time, its bytes read from the file block by block; the other side's answer counts for that
instance alone. Nothing is changed in the files. What is said of failures is in our own words: answers may
hold anything, and credentials stay where they are.
"""

from __future__ import annotations

import base64
import ipaddress
import logging
import re
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import pydicom
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ..dicom.files import (
    DERIVED,
    HEAD_BYTES,
    Upto,
    copied,
    encoding_of,
    limits_of,
    opened,
    read_slice,
    start_of_data_set,
    taken,
)
from ..dicom.headers import quiet_pydicom, text
from ..dicom.series import SliceRef
from ..errors import DestinationRefused, DestinationUnreachable, InputDamaged, InputError, InputUnreadable
from ..system.foreign import foreign, parse_json

log = logging.getLogger(__name__)

T = TypeVar("T")

_BLOCK = 1 << 20
"""Bytes of a file in memory at once."""
ALREADY_THERE = "there already"
"""What `Destination.send` returns of an instance that the other side has had under its UID before."""
_DUPLICATE = frozenset({0x0111, 0xB00E})
"""Failure reasons that say so: *Duplicate SOP Instance* (PS3.7 annex C), and the one that Microsoft's DICOM
service has for it in its answers with HTTP 409 (45070, in its conformance statement)."""
_LARGEST_ANSWER = 1 << 20
"""Bytes of an answer that are read; one about a single instance has a few hundred."""


def file_of(path: Path) -> SliceRef:
    """A DICOM file that can be sent, by its file meta information.

    Raises:
        InputUnreadable: It cannot be read, or has none.
    """
    ref = SliceRef(path=path)
    with quiet_pydicom():
        meta = read_slice(ref, tags=["SOPClassUID"], limits=DERIVED).file_meta
    if not meta:
        raise InputDamaged("it has no file meta information")
    return replace(
        ref,
        sop_class_uid=str(meta.get("MediaStorageSOPClassUID", "")),
        sop_instance_uid=str(meta.get("MediaStorageSOPInstanceUID", "")),
        transfer_syntax_uid=str(meta.get("TransferSyntaxUID", "")),
    )


@contextmanager
def part10(instance: SliceRef) -> Iterator[Path]:
    """A file with preamble and file meta information: the instance's own, or else a temporary one.

    Members of a zip archive are unpacked, and data sets without a preamble get one.

    Raises:
        InputUnreadable: The file is gone or broken.
        OSError: There is no room for a temporary one.
    """
    with opened(instance.path, instance.member) as (source, _):
        head = taken(source, HEAD_BYTES)
        complete = head[128:132] == b"DICM"
        if complete and instance.member is None:
            yield instance.path
            return
        with NamedTemporaryFile(suffix=".dcm") as temporary:
            temporary.write(head if complete else _with_preamble(instance, head))
            copied(source, temporary)
            temporary.flush()
            yield Path(temporary.name)


def _with_preamble(instance: SliceRef, head: bytes) -> bytes:
    """The head of a file that lacks a preamble, with one; the data set stays as it is."""
    tags = ["SOPClassUID", "SOPInstanceUID"]
    with quiet_pydicom():
        ds = read_slice(instance, tags=tags, limits=limits_of(instance.sop_class_uid))
        meta = ds.file_meta
        meta.TransferSyntaxUID = encoding_of(ds)
        meta.MediaStorageSOPClassUID = UID(text(ds, "SOPClassUID"))
        meta.MediaStorageSOPInstanceUID = UID(text(ds, "SOPInstanceUID"))
        written = DicomBytesIO()
        write_file_meta_info(written, meta)
    return bytes(128) + b"DICM" + written.getvalue() + head[start_of_data_set(head)[1] :]


class Destination(Protocol):
    """Where instances are sent to.

    Attributes:
        name: Address without secrets; the same for the same system.
    """

    name: str

    def check(self) -> None:
        """See that it answers, as far as that can be seen without sending anything.

        Raises:
            DestinationUnreachable, DestinationRefused: It does not.
        """

    def send(self, instance: SliceRef, path: Path) -> str:
        """Send one instance.

        Args:
            instance: What it is.
            path: Its file, see `part10`.

        Returns:
            "" when the other side has taken it; `ALREADY_THERE` when it keeps what it got under this UID
            before; else why it did not take it, for the user.

        Raises:
            DestinationUnreachable: No connection, or lost before there was an answer.
            DestinationRefused: It is not what was expected, or does not let us in.
            OSError: The file cannot be read.
        """

    def close(self) -> None:
        """End the connection."""


def tls_context(environment: Mapping[str, str]) -> ssl.SSLContext:
    """How TLS is done: with the system's certificates, or else what the environment names.

    ``DEEPCAC2_CA_BUNDLE``: file or folder of the CA certificates to trust instead. ``DEEPCAC2_CLIENT_CERT``
    and ``DEEPCAC2_CLIENT_KEY``: PEM files of a certificate to show, the key without a password and in the
    first file where the second is not named.

    Raises:
        InputError: One of them cannot be read.
    """
    bundle = environment.get("DEEPCAC2_CA_BUNDLE", "")
    certificate = environment.get("DEEPCAC2_CLIENT_CERT", "")
    key = environment.get("DEEPCAC2_CLIENT_KEY", "")
    folder = bundle if Path(bundle).is_dir() else None  # "" is the working folder
    try:
        context = ssl.create_default_context(cafile=bundle if folder is None else None, capath=folder or None)
    except OSError as error:
        raise InputError(f"DEEPCAC2_CA_BUNDLE: {bundle} is no file of certificates ({_why(error)})") from None
    try:
        if certificate:
            context.load_cert_chain(certificate, key or None, password=lambda: b"")
        elif key:
            raise InputError("DEEPCAC2_CLIENT_KEY is set without DEEPCAC2_CLIENT_CERT; set both")
    except (OSError, ValueError) as error:
        raise InputError(
            "DEEPCAC2_CLIENT_CERT and DEEPCAC2_CLIENT_KEY do not hold a certificate and its key without a "
            f"password, as PEM ({_why(error)})"
        ) from None
    return context


def _why(error: BaseException) -> str:
    """The system's own words on an error, deep in its causes; no addresses and no content."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"certificate: {seen.verify_message}"
        if isinstance(seen, ssl.SSLError) and seen.reason:
            return str(seen.reason).lower().replace("_", " ")
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return type(error).__name__


def _untrusted(name: str, error: BaseException) -> DestinationRefused:
    return DestinationRefused(
        f"{name}: no TLS connection ({_why(error)}); check that it speaks TLS there, and name the file of "
        "its CA's certificate in DEEPCAC2_CA_BUNDLE where it is not one of the system's"
    )


# --- DICOMweb ---------------------------------------------------------------------------------------------


DICOMWEB = "DEEPCAC2_DICOMWEB"
"""What the environment's variables with credentials begin with, where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """How to sign in.

    Attributes:
        header: Value of the Authorization header; "": none.
    """

    header: str = field(default="", repr=False)

    @classmethod
    def of(cls, environment: Mapping[str, str], *, variables: str = DICOMWEB) -> Credentials:
        """``<variables>_TOKEN``, or ``<variables>_USER`` and ``<variables>_PASSWORD``.

        Args:
            environment: Where they are.
            variables: What their names begin with.

        Raises:
            InputError: They do not go together, or cannot be sent.
        """
        token = environment.get(f"{variables}_TOKEN", "")
        user = environment.get(f"{variables}_USER", "")
        password = environment.get(f"{variables}_PASSWORD", "")
        if token and (user or password):
            raise InputError(f"set {variables}_TOKEN or {variables}_USER and _PASSWORD, not both")
        if bool(user) != bool(password):
            raise InputError(f"set both {variables}_USER and {variables}_PASSWORD, or none")
        if token:
            if not re.fullmatch(r"[\x21-\x7e]+", token):
                raise InputError(
                    f"{variables}_TOKEN holds a space, a line break or no ASCII; give the token alone"
                )
            return cls(header=f"Bearer {token}")
        if not user:
            return cls()
        if ":" in user:
            raise InputError(f"{variables}_USER holds a colon, which HTTP does not allow")
        return cls(header="Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii"))


def _multipart(path: Path) -> tuple[dict[str, str], Iterator[bytes]]:
    """Headers and content of a ``multipart/related`` body with one file."""
    boundary, size = uuid.uuid4().hex, path.stat().st_size
    begin = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    end = f"\r\n--{boundary}--\r\n".encode()

    def content() -> Iterator[bytes]:
        yield begin
        left = size
        with path.open("rb") as file:
            while left and (block := file.read(min(_BLOCK, left))):
                left -= len(block)
                yield block
        if left:
            raise OSError("the file became shorter while it was sent")
        yield end

    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return {"Content-Type": kind, "Content-Length": str(len(begin) + size + len(end))}, content()


_JSON = ("application/dicom+json", "application/json")
BUSY = (429, 502, 503, 504)
"""Statuses of a service that may answer later."""
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
"""Seconds before the first and, doubled each time, at most before a later try; chosen."""


def tried(ask: Callable[[], T], retries: int, so_far: Callable[[], str]) -> T:
    """What a destination answers, waiting and asking again when the connection is lost.

    Args:
        ask: Asks once.
        retries: How often it is asked again.
        so_far: What was reached until then, for the error.

    Raises:
        DestinationUnreachable: It did not answer any time.
    """
    wait = _FIRST_WAIT
    for left in range(retries, -1, -1):
        try:
            return ask()
        except DestinationUnreachable as error:
            if not left:
                raise DestinationUnreachable(f"{error}; {so_far()}, the same command goes on") from None
            log.warning("%s; next try in %.0f s", error, wait)
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
    raise AssertionError("unreachable")


class WebService:
    """A DICOMweb service (PS3.18).

    Args:
        url: Its root, such as ``https://pacs.example.org/dicom-web``.
        credentials: How to sign in.
        tls: How TLS is done, see `tls_context`.
        timeout: Seconds to wait for a connection, and for each answer.
        insecure: Send credentials over plain http to another machine too.

    Raises:
        InputError: The URL is none, holds credentials, or these would go over the network unprotected.
    """

    def __init__(
        self,
        url: str,
        *,
        credentials: Credentials,
        tls: ssl.SSLContext,
        timeout: float | None = 60.0,
        insecure: bool = False,
    ) -> None:
        import urllib3

        from .. import __version__

        self.name, host = _root(url, self.option, self.resource)
        if credentials.header and self.name.startswith("http://") and not (insecure or is_here(host)):
            raise InputError(
                f"{self.name}: over plain http everybody on the way can read the credentials; give an https "
                "URL, or --insecure where the network is safe"
            )
        self._headers = {"Accept": "application/dicom+json", "User-Agent": f"deepcac2/{__version__}"}
        self._signed_in = bool(credentials.header)
        if credentials.header:
            self._headers["Authorization"] = credentials.header
        # Neither proxies nor .netrc: what is sent where is only what was asked for.
        self._pool = urllib3.PoolManager(
            num_pools=1,
            retries=False,
            timeout=urllib3.Timeout(connect=timeout, read=timeout),
            ssl_context=tls,
        )

    def close(self) -> None:
        """End the connection."""
        self._pool.clear()

    @contextmanager
    def _asked(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Iterator[bytes] | bytes | None = None,
    ) -> Iterator[Any]:
        """The answer to a request, its content not read yet.

        Raises:
            DestinationUnreachable, DestinationRefused: There is none, or none any more while it is read.
        """
        from urllib3 import exceptions

        try:
            response = self._pool.request(
                method,
                f"{self.name}/{path}",
                body=body,
                headers={**self._headers, **(headers or {})},
                redirect=False,
                preload_content=False,
            )
            try:
                yield response
            except BaseException:
                response.close()
                raise
            response.release_conn()
        except exceptions.SSLError as error:
            raise _untrusted(self.name, error) from None
        except exceptions.HTTPError as error:
            late = isinstance(error, exceptions.TimeoutError)
            if late and not isinstance(error, exceptions.NewConnectionError):
                raise DestinationUnreachable(f"{self.name}: no answer in time (--timeout)") from None
            raise DestinationUnreachable(
                f"{self.name}: no connection, or it was lost ({_why(error)})"
            ) from None

    def _judge(self, status: int, kind: str, kinds: Sequence[str] = _JSON) -> None:
        """Raise where the answer is about the service as a whole and not about an instance.

        Args:
            status, kind: Status and media type of the answer.
            kinds: What it should be where it is a success.
        """
        if status in (401, 407) and not self._signed_in:
            what = f"asks for credentials: set {self.variables}_USER and _PASSWORD, or _TOKEN"
        elif status in (401, 407):
            what = f"does not accept the credentials: check {self.variables}_USER and _PASSWORD, or _TOKEN"
        elif status == 403:
            what = f"does not allow this user or machine to {self.purpose}: check the rights there"
        elif status in (404, 405, 410, 501):
            what = (
                f"has no {self.service} at {self.name}/{self.resource}: check the URL, which is the DICOMweb "
                "root"
            )
        elif status in BUSY:
            raise DestinationUnreachable(f"{self.name}: it is too busy or being restarted (HTTP {status})")
        elif 300 <= status < 400:
            what = "sends us elsewhere, to a login page perhaps: check the URL (https?) and the credentials"
        elif 200 <= status < 300 and kind not in kinds:
            what = (
                f"answers with {_plain(kind) or 'nothing'} instead of {self._expected(kinds)}: check the "
                "URL, or the login"
            )
        else:
            return
        raise DestinationRefused(f"{self.name} {what} (HTTP {status})")

    purpose, service, resource = "store", "STOW-RS", "studies"
    """What it is asked to do, in words, and where below its root."""
    option, variables = "--dicomweb", DICOMWEB
    """Who names it, and its credentials."""

    @staticmethod
    def _expected(kinds: Sequence[str]) -> str:
        return "DICOM JSON" if kinds == _JSON else "DICOM files"


def media_type(response: Any) -> str:
    """The media type of an answer, or of a request, without parameters, in small letters."""
    return str(response.headers.get("Content-Type", "")).partition(";")[0].strip().lower()


class DicomWeb(WebService):
    """A DICOMweb service that stores; see `Destination`."""

    def check(self) -> None:
        """See `Destination.check`: most services say here already whom they do not let in."""
        status, kind, _ = self._request("OPTIONS")
        if status in (401, 407):
            self._judge(status, kind)

    def send(self, instance: SliceRef, path: Path) -> str:
        """See `Destination.send`."""
        status, kind, content = self._request("POST", *_multipart(path))
        self._judge(status, kind)
        return self._outcome(instance.sop_instance_uid, status, content)

    def _request(
        self, method: str, headers: Mapping[str, str] | None = None, body: Iterator[bytes] | None = None
    ) -> tuple[int, str, bytes]:
        """Status, media type and content of the answer to a request for ``studies``."""
        with self._asked(method, "studies", headers, body) as response:
            content = response.read(_LARGEST_ANSWER)
            if len(content) == _LARGEST_ANSWER:
                response.close()
        return response.status, media_type(response), content

    def _outcome(self, uid: str, status: int, content: bytes) -> str:
        """What an answer says of the one instance that was sent: "" or why it was not taken."""
        failed: dict[Any, Any] = {}
        stored: dict[Any, Any] = {}
        with suppress(InputUnreadable), foreign("the answer"):
            answer = parse_json(content, "the answer")
            failed = {first_in(i, "00081155"): i for i in values_in(answer, "00081198")}
            stored = {first_in(i, "00081155"): i for i in values_in(answer, "00081199")}
        if uid in failed:
            code = _number(failed[uid], "00081197")
            if code in _DUPLICATE:
                return ALREADY_THERE
            return "refused without a reason" if code is None else f"refused: {failure_in_words(code)}"
        if uid in stored and status < 300:
            warning = _number(stored[uid], "00081196")
            if warning is not None:
                log.warning("instance %s: stored, with the warning 0x%04X", uid, warning)
            return ""
        if status == 413:
            return "refused: larger than the service takes (HTTP 413)"
        if status == 415:
            return "refused: its transfer syntax is not taken (HTTP 415)"
        return f"not stored: the answer does not name it (HTTP {status})"


def _root(url: str, option: str, resource: str) -> tuple[str, str]:
    """A DICOMweb root in one way of writing, and its host.

    Args:
        option: Who names it.
        resource: What is asked for below it.

    Raises:
        InputError: It is none. The text does not repeat what may hold a password.
    """
    if "@" in url:
        raise InputError(
            f"{option}: there is an @ in the URL; user and password do not belong there, set "
            "DEEPCAC2_DICOMWEB_USER and DEEPCAC2_DICOMWEB_PASSWORD"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    if parts.path.rstrip("/").endswith(f"/{resource}"):
        raise InputError(f"{option}: give the DICOMweb root, without /{resource} at the end")
    wrong = parts.query or parts.fragment or "\\" in url or any(not "!" <= c <= "~" for c in url)
    if parts.scheme not in ("http", "https") or not host or wrong:
        raise InputError(
            f"{option}: that is no DICOMweb root; give one such as https://pacs.example.org/dicom-web, "
            "without ? and #"
        )
    where = f"[{host}]" if ":" in host else host
    usual = {"http": 80, "https": 443}[parts.scheme]
    suffix = "" if port in (None, usual) else f":{port}"
    return f"{parts.scheme}://{where}{suffix}{parts.path.rstrip('/')}", host


def same_server(one: str, other: str) -> bool:
    """Whether two DICOMweb roots are at the same machine and port by the same protocol.

    Raises:
        InputError: One is none.
    """
    (first, _), (second, _) = (_root(url, "--dicomweb", "studies") for url in (one, other))
    return urlsplit(first)[:2] == urlsplit(second)[:2]


def is_here(host: str) -> bool:
    """Whether a host is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9.+/-]", "?", text)[:60]


def values_in(item: Any, tag: str) -> list[Any]:
    """Values of an attribute in the DICOM JSON model (PS3.18 F.2); none where it is absent or malformed."""
    element = item.get(tag) if isinstance(item, dict) else None
    value = element.get("Value") if isinstance(element, dict) else None
    return value if isinstance(value, list) else []


def first_in(item: Any, tag: str) -> Any:
    """First value of an attribute in the DICOM JSON model, None where it is absent."""
    return next(iter(values_in(item, tag)), None)


def _number(item: Any, tag: str) -> int | None:
    """A status in the DICOM JSON model, None where it is absent or none."""
    with suppress(InputUnreadable), foreign("the answer"):
        value = first_in(item, tag)
        return value if isinstance(value, int) and 0 <= value <= 0xFFFF else None
    return None


def failure_in_words(code: int) -> str:
    """A failure status of the storage service, C-STORE or STOW-RS (PS3.4 tables B.2-1 and I.2-2)."""
    from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

    text = str(STORAGE_SERVICE_CLASS_STATUS.get(code, ("", ""))[1]).removeprefix("Refused: ")
    return f"{text} (0x{code:04X})" if text else f"status 0x{code:04X}"


# --- DIMSE ------------------------------------------------------------------------------------------------

_ADDRESS = re.compile(r"(?P<aet>[^@\\]+)@(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5})")
_MOST_CONTEXTS = 100
"""Presentation contexts proposed at once; PS3.8 9.3.2.2 allows 128, and each class needs up to two."""
_CONVERTIBLE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


def check_title(title: str, option: str) -> str:
    """An application entity title without the spaces around it.

    Raises:
        InputError: It is none (PS3.5 table 6.2-1: up to 16 printable ASCII characters, no backslash).
    """
    title = title.strip(" ")
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", title):
        raise InputError(
            f"{option}: an AE title has 1 to 16 characters, ASCII letters, digits and signs, no backslash"
        )
    return title


class Dimse:
    """A storage SCP.

    Args:
        address: ``AET@HOST:PORT``.
        calling: Our own AE title.
        tls: How TLS is done, see `tls_context`; None: without.
        timeout: Seconds to wait for a connection, and for each answer.

    Raises:
        InputError: The address or the title is none.
    """

    def __init__(
        self, address: str, *, calling: str, tls: ssl.SSLContext | None = None, timeout: float | None = 60.0
    ) -> None:
        from pynetdicom import AE, _config

        match = _ADDRESS.fullmatch(address)
        if match is None or not 0 < int(match["port"]) < 65536:
            raise InputError("--dimse: give AET@HOST:PORT, for example ARCHIVE@pacs.example.org:104")
        self._called = check_title(match["aet"], "--dimse")
        self._host, self._port = match["host"].strip("[]").lower(), int(match["port"])
        self.name = f"{self._called}@{match['host'].lower()}:{self._port}"
        self._tls, self._timeout = tls, timeout
        self._entity = AE(ae_title=check_title(calling, "--calling-aet"))
        self._entity.connection_timeout = timeout
        self._entity.acse_timeout = timeout
        self._entity.dimse_timeout = timeout
        self._entity.network_timeout = timeout
        self._calling = self._entity.ae_title
        self._association: Any = None
        self._socket: socket.socket | None = None
        self._waiting = False  # for an answer: then an association can only be aborted
        self._proposed: list[tuple[str, str]] = []
        self._accepted: set[tuple[str, str]] = set()
        # From the file in blocks instead of parsed and written anew; a setting of the whole library.
        _config.STORE_SEND_CHUNKED_DATASET = True

    def check(self) -> None:
        """See `Destination.check`: a connection, with TLS where asked for."""
        try:
            with socket.create_connection((self._host, self._port), self._timeout) as connection:
                if self._tls is not None:
                    self._tls.wrap_socket(connection, server_hostname=self._host).close()
        except ssl.SSLError as error:
            raise _untrusted(self.name, error) from None
        except OSError as error:
            raise DestinationUnreachable(f"{self.name}: no connection ({_why(error)})") from None

    def send(self, instance: SliceRef, path: Path) -> str:
        """See `Destination.send`."""
        own = (instance.sop_class_uid, instance.transfer_syntax_uid or ImplicitVRLittleEndian)
        if not own[0]:
            return "not sent: its header names no SOP class"
        # What is not compressed is offered both ways: all must take implicit VR, and some take nothing else.
        syntaxes = _CONVERTIBLE if own[1] in _CONVERTIBLE else (own[1],)
        contexts = [(own[0], str(s)) for s in syntaxes]
        if own not in self._proposed:
            self.close()
            known = self._proposed if len(self._proposed) < _MOST_CONTEXTS else []
            self._associate([*known, *contexts])
        accepted = self._accepted.intersection(contexts)
        if not accepted:
            return f"refused: {UID(own[0]).name} in {UID(own[1]).name} is not taken there"
        if self._association is None or not self._association.is_established:
            self._associate(self._proposed)
        try:
            whole: Path | pydicom.Dataset = path
            if own not in accepted:
                whole = read_slice(SliceRef(path=path), upto=Upto.END, limits=limits_of(own[0]))
            self._waiting = True
            status = self._association.send_c_store(whole)
            self._waiting = False
        except RuntimeError:  # the other side ended the association since
            status = pydicom.Dataset()
        except (ValueError, AttributeError) as error:
            return f"not sent: its header is incomplete, or it cannot be encoded ({type(error).__name__})"
        if "Status" not in status:
            self._end()
            raise DestinationUnreachable(f"{self.name}: the connection was lost, or no answer came in time")
        return self._outcome(instance.sop_instance_uid, int(status.Status))

    def _outcome(self, uid: str, status: int) -> str:
        from pynetdicom.status import code_to_category

        if status == 0:
            return ""
        if status in _DUPLICATE:
            return ALREADY_THERE
        if code_to_category(status) == "Warning":
            log.warning("instance %s: stored, with the warning 0x%04X", uid, status)
            return ""
        return f"refused: {failure_in_words(status)}"

    def _associate(self, contexts: list[tuple[str, str]]) -> None:
        """Open an association for SOP classes in transfer syntaxes; those taken are then `_accepted`.

        Raises:
            DestinationUnreachable, DestinationRefused: There is none.
        """
        from pynetdicom import evt
        from pynetdicom.presentation import build_context

        self._end()
        self.check()  # the library only logs why there is no connection
        try:
            self._association = self._entity.associate(
                self._host,
                self._port,
                contexts=[build_context(c, s) for c, s in contexts],
                ae_title=self._called,
                tls_args=None if self._tls is None else (self._tls, self._host),
                evt_handlers=[(evt.EVT_CONN_OPEN, self._connected)],
            )
        except OSError as error:
            raise DestinationUnreachable(f"{self.name}: no connection ({_why(error)})") from None
        answer = self._association.acceptor.primitive
        if answer is not None and answer.result == 0:
            self._proposed = contexts
            self._accepted = {
                (str(c.abstract_syntax), str(c.transfer_syntax[0]))
                for c in self._association.accepted_contexts
            }
            return
        self._end()
        if answer is None:
            raise DestinationUnreachable(f"{self.name}: the connection ended before there was an association")
        reason = str(answer.reason_str).lower()
        if answer.result == 2:  # PS3.8 table 9-21: rejected-transient
            raise DestinationUnreachable(f"{self.name} rejects the association for now ({reason})")
        raise DestinationRefused(
            f"{self.name} rejects the association ({reason}); check both AE titles, and that it knows "
            f"{self._calling} at this machine's address"
        )

    def _connected(self, event: Any) -> None:
        """Keep the socket: the library leaves it open where the other side has closed it."""
        self._socket = event.assoc.dul.socket.socket
        # Else the last, short part of each instance waits for the other side's delayed ACK, some 40 ms.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _end(self) -> None:
        if self._association is not None:
            if self._association.is_alive():
                self._association.abort()
            if self._association.dul.is_alive():
                self._association.dul.join(2)
        if self._socket is not None:
            self._socket.close()
        self._association = self._socket = None
        self._waiting = False

    def close(self) -> None:
        """See `Destination.close`."""
        if self._association is not None and self._association.is_established and not self._waiting:
            self._association.release()
        self._end()
