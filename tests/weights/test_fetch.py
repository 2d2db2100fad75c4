"""Fetching published weights, from a file and from a local web server; never from the internet."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from deepcac2.cli.main import main
from deepcac2.errors import WeightsAltered, WeightsError, WeightsMissing, WeightsUnsupported
from deepcac2.models.heart.network import HeartModel
from deepcac2.weights import fetch, resolve

SMALL = ([[2, 2, 2]], [[3, 3, 3]] * 2)
NAME = "platipy-heart"


@pytest.fixture
def archive(v1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zip archive laid out like the published one, and an empty home for fetched sets."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    plans, networks = v1.plans_of(*SMALL, (8, 8, 8)), [v1.random_network(i, 2, 4, *SMALL) for i in range(2)]
    for folds, network in zip(("all", "fold_{}"), networks, strict=True):
        v1.write_results(tmp_path / "v1", plans, [network], task="Task400_OPEN_HEART_1FOLD", folds=folds)
    path = tmp_path / "served" / "Task400_OPEN_HEART_3d_lowres.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as target:
        for file in sorted((tmp_path / "v1").rglob("*")):
            target.write(file, file.relative_to(tmp_path / "v1"))
    return path


@pytest.fixture
def mirror(archive: Path) -> Iterator[str]:
    """Address of the archive on a web server of this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(archive.parent))

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/{archive.name}"
    server.shutdown()
    server.server_close()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_fetched_weights_are_found_by_name(archive, mirror):
    found = fetch(NAME, accept_licence=True, sha256=_sha256(archive), url=mirror)
    assert found.metadata["licence"] == "CC BY-NC 4.0"
    assert found.metadata["fetched"] == {
        "url": mirror,
        "sha256": _sha256(archive),
        "sha256_known_from": "user",
    }
    assert resolve(NAME, "heart") == found
    assert HeartModel.load(NAME, torch.device("cpu")).patch == (8, 8, 8)
    # as its users run it: 3d_lowres, folds all
    assert found.metadata["configuration"] == "3d_lowres"
    assert sorted(found.metadata["source"]["files"]) == ["all/model_final_checkpoint.model", "plans.pkl"]
    archive.unlink()
    assert fetch(NAME, url=mirror) == found  # a second call downloads nothing


def test_first_download_is_trusted_only_when_told_so(mirror, tmp_path):
    with pytest.raises(WeightsError, match="no sha256"):
        fetch(NAME, accept_licence=True, url=mirror)
    found = fetch(NAME, accept_licence=True, trust_first=True, url=mirror)
    assert found.metadata["fetched"]["sha256_known_from"] == "first download"
    assert sorted(p.name for p in (tmp_path / "home" / "deepcac2" / "weights").iterdir()) == [NAME]


def test_licence_must_be_accepted(archive):
    with pytest.raises(WeightsError, match=r"CC BY-NC 4\.0.*--accept-licence"):
        fetch(NAME, source=archive, sha256=_sha256(archive))


def test_a_wrong_archive_is_refused_and_nothing_is_left(mirror, tmp_path):
    with pytest.raises(WeightsAltered, match="it was not used"):
        fetch(NAME, accept_licence=True, sha256=64 * "0", url=mirror)
    assert not list((tmp_path / "home" / "deepcac2" / "weights").iterdir())


def test_a_local_copy_needs_its_hash_too(archive, tmp_path):
    with pytest.raises(WeightsError, match=f"--sha256 {_sha256(archive)}"):
        fetch(NAME, accept_licence=True, source=archive)
    found = fetch(
        NAME,
        accept_licence=True,
        source=archive,
        sha256=_sha256(archive).upper(),
        destination=tmp_path / "to",
    )
    assert found.path == tmp_path / "to"
    with pytest.raises(WeightsMissing, match="--from"):
        fetch(NAME, accept_licence=True, source=tmp_path / "none.zip", sha256=64 * "0")


def test_offline_says_what_to_do(archive):
    with pytest.raises(WeightsError, match=r"cannot be downloaded .* --from FILE"):
        fetch(NAME, accept_licence=True, sha256=64 * "0", url="http://127.0.0.1:9/nothing.zip")


def test_archives_that_reach_out_or_are_none_are_refused(archive, tmp_path):
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad, "w") as target:
        target.writestr("../outside.txt", "x")
    with pytest.raises(WeightsUnsupported, match="unsafe name"):
        fetch(NAME, accept_licence=True, source=bad, sha256=_sha256(bad))
    bad.write_bytes(b"no zip")
    with pytest.raises(WeightsUnsupported, match="no zip archive"):
        fetch(NAME, accept_licence=True, source=bad, sha256=_sha256(bad))


def test_only_published_sets_can_be_fetched():
    with pytest.raises(WeightsError, match=NAME):
        fetch("nobody", accept_licence=True)


def test_command_line(archive, tmp_path, capsys):
    assert main(["weights", "list", "--json"]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert rows[NAME]["state"] == "not here"
    digest = _sha256(archive)
    arguments = ["weights", "fetch", NAME, "--accept-licence", "--from", str(archive)]
    assert main(arguments) == 40
    assert digest in capsys.readouterr().err
    assert main([*arguments, "--sha256", digest]) == 0
    assert "CC BY-NC 4.0" in capsys.readouterr().out
    assert main(["weights", "list"]) == 0
    assert "fetched" in capsys.readouterr().out
    assert main(["weights", "verify", NAME]) == 0
    assert "3 files unaltered" in capsys.readouterr().out
    plans = tmp_path / "home" / "deepcac2" / "weights" / NAME / "plans.json"
    plans.write_text(plans.read_text() + " ")
    assert main(["weights", "verify", NAME]) == 42
    assert "plans.json was altered" in capsys.readouterr().err
    convert = ["weights", "convert-nnunet-v1", str(tmp_path / "v1"), str(tmp_path / "c"), "--name", "mine"]
    assert main(convert) == 40
    assert "--folds all" in capsys.readouterr().err
    assert main([*convert, "--folds", "all"]) == 0
    assert capsys.readouterr().out.startswith("mine: ")
    assert main(["weights", "convert-nnunet-v2", str(tmp_path / "v1"), str(tmp_path / "d")]) == 41
    assert "plans.json" in capsys.readouterr().err
