"""The published DeepCAC2 network: converted and fetched, never from the internet."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from deepcac2.cli.main import main
from deepcac2.errors import WeightsError, WeightsUnsupported
from deepcac2.imaging.crop import Patches
from deepcac2.models.unet3d import build
from deepcac2.weights import convert_deepcac2, fetch, load_manifest, load_tensors, numbers, resolve
from deepcac2.weights.deepcac2 import STATED, TOLD

WIDTHS = (2, 3, 4)
FILE = "vivid-haze-6_model.pt"


@pytest.fixture
def tensors(published: ModuleType) -> dict[str, torch.Tensor]:
    return published.random_tensors(WIDTHS)  # type: ignore[no-any-return]


@pytest.fixture
def file(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """A file like the published one: a plain state_dict, as `torch.save` writes it."""
    torch.save(OrderedDict(tensors), tmp_path / FILE)
    return tmp_path / FILE


def test_every_tensor_is_kept_under_its_name(tensors, file, tmp_path):
    found = convert_deepcac2(file, tmp_path / "set")
    kept = load_file(tmp_path / "set" / "model.safetensors")
    assert kept.keys() == tensors.keys()
    assert all(torch.equal(kept[name], tensors[name]) for name in tensors)
    assert sorted(p.name for p in found.path.iterdir()) == ["model.safetensors", "weights.json"]

    about = json.loads((found.path / "weights.json").read_text())
    assert (about["name"], about["role"], about["licence"]) == ("deepcac2", "calcium", "MIT")
    assert about["architecture"] == {"name": "deepcac2", "widths": list(WIDTHS)}
    assert about["normalisation"] == {"window_hu": [-135, 500], "rescale_to": "crop"}
    assert about["input"]["spacing_mm"] == [2.5, 0.7, 0.7]
    assert about["source"]["files"] == {FILE: hashlib.sha256(file.read_bytes()).hexdigest()}
    assert "Framingham" in about["training_data"]
    assert found.domain is not None
    assert found.domain.contrast is False
    assert "390 NLST" in found.domain.measured_on
    assert numbers(found, Patches) == Patches()
    build(load_tensors(resolve(found.path, "calcium"), "model.safetensors"))
    convert_deepcac2(file, tmp_path / "set", name="again")  # a set may be written anew
    assert resolve(tmp_path / "set").name == "again"


def test_what_is_another_network_is_refused(tensors, tmp_path):
    bias = "ups.0.bias"
    others = {
        "missing": {k: v for k, v in tensors.items() if k != bias},
        "none of its tensors": {**tensors, "head.weight": torch.zeros(1)},
        "has the shape": {**tensors, bias: torch.zeros(7)},
        "no tensors downs": {"a": torch.zeros(1)},
        "is no tensor": {**tensors, bias: "text"},
        "no fractions": {**tensors, bias: torch.zeros_like(tensors[bias], dtype=torch.int64)},
        "no finite numbers": {**tensors, bias: torch.full_like(tensors[bias], float("nan"))},
        "are no finite": {**tensors, bias: torch.full_like(tensors[bias], 1e300, dtype=torch.float64)},
        "below 0": {**tensors, "downs.0.conv.1.running_var": torch.tensor([0.5, -1e-9])},
        "conv.0.weight": {k: v for k, v in tensors.items() if not k.startswith("downs.0.")},
    }
    for says, state in others.items():
        torch.save(state, tmp_path / "other.pt")
        with pytest.raises(WeightsUnsupported, match=says):
            convert_deepcac2(tmp_path / "other.pt", tmp_path / "set")
    assert not (tmp_path / "set").exists()


class Harm:
    """What a pickle would call."""

    def __reduce__(self):
        return print, ("called",)


def test_no_code_of_a_pickle_runs(tensors, tmp_path, capsys):
    torch.save({**tensors, "x": Harm()}, tmp_path / "harm.pt")
    with pytest.raises(WeightsUnsupported, match="holds more than weights"):
        convert_deepcac2(tmp_path / "harm.pt", tmp_path / "set")
    torch.save(torch.nn.Conv3d(1, 1, 1), tmp_path / "module.pt")
    with pytest.raises(WeightsUnsupported, match="holds more than weights"):
        convert_deepcac2(tmp_path / "module.pt", tmp_path / "set")
    (tmp_path / "page.pt").write_text("<!DOCTYPE html>")
    with pytest.raises(WeightsUnsupported, match="is no checkpoint"):
        convert_deepcac2(tmp_path / "page.pt", tmp_path / "set")
    assert "called" not in capsys.readouterr().out


def test_other_files_are_left_alone(file, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").touch()
    with pytest.raises(WeightsError, match=r"holds thesis\.doc"):
        convert_deepcac2(file, tmp_path / "full")
    with pytest.raises(WeightsError, match="is not a folder"):
        convert_deepcac2(file, file)


def test_fetched_by_name(file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match=r"MIT.*--accept-licence"):
        fetch("deepcac2", source=file)
    with pytest.raises(WeightsError, match=f"--sha256 {digest}"):
        fetch("deepcac2", accept_licence=True, source=file)
    with pytest.raises(WeightsError, match=r"vivid-haze-6_model\.pt .*--trust-first"):
        fetch("deepcac2", accept_licence=True)
    found = fetch("deepcac2", accept_licence=True, trust_first=True, url=file.as_uri())
    assert found.metadata["fetched"]["sha256"] == digest
    assert found.metadata["fetched"]["sha256_known_from"] == "first download"
    assert resolve("deepcac2", "calcium").hash == found.hash
    assert [p.name for p in found.path.parent.iterdir()] == ["deepcac2"]


def test_the_manifest_tells_the_same_of_it():
    entry = load_manifest()["deepcac2"]
    assert {key: getattr(entry, key) for key in TOLD} == TOLD
    assert entry.domain == STATED["domain"]
    assert entry.input == STATED["input"]
    assert entry.source["file"] == FILE
    assert not entry.default


def test_command_line(file, tmp_path, capsys):
    assert main(["weights", "convert-deepcac2", str(file), str(tmp_path / "set"), "--name", "mine"]) == 0
    assert capsys.readouterr().out.startswith("mine: ")
    assert main(["weights", "verify", str(tmp_path / "set")]) == 0
    assert main(["weights", "convert-deepcac2", str(tmp_path / "none.pt"), str(tmp_path / "other")]) == 43
    assert main(["weights", "verify", str(file)]) == 43
    assert "convert-deepcac2" in capsys.readouterr().err
