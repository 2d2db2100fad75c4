"""Getting a published set of weights from where its makers put it.

This project can vouch only for a file whose sha256 it knows. Where the manifest has none, the user must
bring one (``--sha256``), or say in so many words that the first download is trusted (``--trust-first``);
either way the hash is kept in the set's ``weights.json``.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from ..errors import WeightsAltered, WeightsError, WeightsMissing, WeightsUnsupported
from ..system.hashing import sha256_of
from .deepcac2 import convert_deepcac2
from .description import DESCRIPTION, WeightSet, describe
from .manifest import load_manifest, user_folder
from .nnunet_v1 import convert_nnunet_v1
from .nnunet_v2 import convert_nnunet_v2

log = logging.getLogger(__name__)

MAX_UNPACKED = 8 * 1024**3
"""Bytes an archive may unpack to; five folds of a large nnU-Net with optimiser state stay below."""


def fetch(
    name: str,
    *,
    accept_licence: bool = False,
    sha256: str | None = None,
    trust_first: bool = False,
    source: Path | None = None,
    url: str | None = None,
    destination: Path | None = None,
) -> WeightSet:
    """Download (or take a local copy of) a published set, check it, convert it.

    Args:
        name: A set of the manifest that has a ``source``.
        accept_licence: The user has read the licence and accepts it.
        sha256: What the archive's sha256 must be.
        trust_first: Where no sha256 is known, take the archive as it comes and record its hash.
        source: A copy of the archive on this machine, instead of downloading.
        url: Where to download from instead of the makers' address: a mirror.
        destination: Where the set goes; by default where ``--weights NAME`` looks.

    Returns:
        The converted set; if it was there before, that one.

    Raises:
        WeightsError: Unknown name, licence not accepted, hash not known, or no network.
        WeightsAltered: The archive's sha256 is not the expected one.
        WeightsUnsupported: The archive holds something else.
    """
    entry = load_manifest().get(name)
    if entry is None or not entry.source:
        names = ", ".join(e.name for e in load_manifest().values() if e.source)
        raise WeightsError(f"{name!r} cannot be fetched; there is: {names}")
    destination = destination or user_folder() / name
    if (destination / DESCRIPTION).is_file():
        return describe(destination)
    if not accept_licence:
        raise WeightsError(
            f"{name} is under {entry.licence}: {entry.citation}. If you accept, add --accept-licence"
        )
    expected = (sha256 or entry.source.get("sha256") or "").lower()
    if not expected and not trust_first and source is None:
        raise WeightsError(
            f"no sha256 of {entry.source['file']} is known to this project; give it with --sha256 HEX, "
            "or accept what is downloaded, and have its hash recorded, with --trust-first"
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".fetch-") as folder:
        archive = source or _download(url or entry.source["url"], Path(folder) / entry.source["file"])
        if not archive.is_file():
            raise WeightsMissing(f"no file {archive}; give the downloaded {entry.source['file']} with --from")
        found = sha256_of(archive)
        if expected and found != expected:
            raise WeightsAltered(f"{archive.name} has sha256 {found}, expected {expected}; it was not used")
        if not expected and not trust_first:
            raise WeightsError(
                f"{archive} has sha256 {found}, which this project cannot vouch for; "
                f"if it is the file you mean, add --sha256 {found}"
            )
        if entry.source["format"] == "deepcac2":  # one file, no archive
            convert: Callable[..., WeightSet] = convert_deepcac2
        else:
            v1 = partial(convert_nnunet_v1, folds=entry.source.get("folds"))
            convert = v1 if entry.source["format"] == "nnunet-v1" else convert_nnunet_v2
            unpacked = Path(folder) / "unpacked"
            _unpack(archive, unpacked)
            archive = unpacked
        return convert(
            archive,
            destination,
            name=name,
            licence=entry.licence,
            citation=entry.citation,
            training_data=entry.training_data,
            intended_use=entry.intended_use,
            fetched={
                "url": str(source or url or entry.source["url"]),
                "sha256": found,
                "sha256_known_from": "first download" if not expected else "user" if sha256 else "manifest",
            },
        )


def _download(url: str, target: Path) -> Path:
    log.info("downloading %s", url)
    try:
        with urllib.request.urlopen(url, timeout=60) as response, target.open("wb") as handle:
            shutil.copyfileobj(response, handle, 1 << 20)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise WeightsError(
            f"{url} cannot be downloaded ({reason}); download it elsewhere and give the file with --from FILE"
        ) from error
    return target


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip archive whose members stay inside the folder and within `MAX_UNPACKED`."""
    try:
        with zipfile.ZipFile(archive) as content:
            for member in content.infolist():
                path = PurePosixPath(member.filename.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts:
                    raise WeightsUnsupported(
                        f"{archive.name} holds the unsafe name {member.filename!r}; not unpacked"
                    )
            if sum(m.file_size for m in content.infolist()) > MAX_UNPACKED:
                raise WeightsUnsupported(
                    f"{archive.name} unpacks to more than {MAX_UNPACKED >> 30} GiB; not unpacked"
                )
            content.extractall(folder)
    except zipfile.BadZipFile:
        raise WeightsUnsupported(f"{archive} is no zip archive; download it again") from None
