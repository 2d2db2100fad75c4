"""Sets of weights: found, described, verified, and refused when something is wrong with them."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deepcac2.errors import WeightsAltered, WeightsError, WeightsMissing, WeightsUnsupported
from deepcac2.pipeline.step import roles
from deepcac2.weights import (
    Domain,
    bundle,
    describe,
    load_json,
    load_manifest,
    load_tensors,
    resolve,
    user_folder,
    verify,
    write_description,
)
from deepcac2.weights.manifest import MANIFEST, make_default


@pytest.fixture
def calcium(tmp_path: Path) -> Path:
    """A calcium set of one tensor."""
    folder = tmp_path / "set"
    folder.mkdir()
    save_file({"a": torch.arange(4.0)}, folder / "model.safetensors")
    (folder / "extra.json").write_text('{"b": 1}')
    write_description(
        folder, name="test", role="calcium", files=["model.safetensors", "extra.json"], licence="CC0"
    )
    return folder


def test_a_folder_or_its_file_is_found_and_loaded(calcium):
    for given in (calcium, str(calcium), calcium / "model.safetensors"):
        found = resolve(given, "calcium")
        assert (found.name, found.role, found.path) == ("test", "calcium", calcium)
        assert found.metadata == {"licence": "CC0"}
        verify(found)
        assert torch.equal(load_tensors(found, "model.safetensors")["a"], torch.arange(4.0))
        assert load_json(found, "extra.json") == {"b": 1}


def test_hashes_are_those_of_sha256sum(calcium):
    found = resolve(calcium, "calcium")
    lines = []
    for name in sorted(found.files):
        content = hashlib.sha256((calcium / name).read_bytes()).hexdigest()
        assert found.files[name] == content
        lines.append(f"{content}  {name}\n")
    assert found.hash == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_one_changed_byte_is_noticed(calcium):
    path = calcium / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = resolve(calcium, "calcium")
    with pytest.raises(WeightsAltered, match=r"model\.safetensors was altered"):
        verify(found)
    with pytest.raises(WeightsAltered):
        load_tensors(found, "model.safetensors")


def test_a_missing_file_is_named(calcium):
    found = resolve(calcium, "calcium")
    (calcium / "extra.json").unlink()
    with pytest.raises(WeightsMissing, match=r"extra\.json"):
        verify(found)
    with pytest.raises(WeightsMissing, match=r"extra\.json"):
        resolve(calcium, "calcium")


def test_a_file_that_the_description_does_not_name_is_refused(calcium):
    save_file({"a": torch.zeros(1)}, calcium / "other.safetensors")
    with pytest.raises(WeightsMissing, match="its sha256 is unknown"):
        resolve(calcium / "other.safetensors", "calcium")
    with pytest.raises(WeightsMissing, match="not part of the set"):
        load_tensors(resolve(calcium, "calcium"), "other.safetensors")


def test_what_is_called_safetensors_must_be_it(calcium):
    (calcium / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    write_description(calcium, name="test", role="calcium", files=["model.safetensors"])
    with pytest.raises(WeightsUnsupported, match="not valid safetensors"):
        load_tensors(resolve(calcium, "calcium"), "model.safetensors")


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("fold_0/checkpoint_final.pth", "convert-nnunet-v2"),
        ("model.pt", "convert-nnunet-v2"),
        ("fold_0/model_final_checkpoint.model", "convert-nnunet-v1"),
        ("plans.pkl", "convert-nnunet-v1"),
    ],
)
def test_pickles_are_refused_and_the_converter_named(tmp_path, file, command):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x80\x04.")
    for given in (path, tmp_path):
        with pytest.raises(WeightsUnsupported, match=command):
            resolve(given, "heart")


def test_wrong_role_is_refused(calcium):
    with pytest.raises(WeightsError, match="holds calcium weights, not heart weights"):
        resolve(calcium, "heart")
    assert resolve(calcium).role == "calcium"


def test_nothing_there_says_what_there_is(tmp_path):
    with pytest.raises(WeightsMissing, match=r"bundled, .*platipy-heart"):
        resolve(tmp_path / "none", "heart")
    with pytest.raises(WeightsMissing, match=r"no weights\.json"):
        resolve(tmp_path, "heart")
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(WeightsUnsupported, match="only safetensors"):
        resolve(tmp_path / "a.npz", "calcium")


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        '{"format": 2}',
        '{"format": 1, "name": "x", "role": "heart", "files": {}}',
        '{"format": 1, "name": "x", "role": "", "files": {"a": "' + 64 * "0" + '"}}',
        '{"format": 1, "name": "x", "role": "../liver", "files": {"a": "' + 64 * "0" + '"}}',
        '{"format": 1, "name": "x", "role": "heart", "files": {"a": "12"}}',
    ],
)
def test_a_broken_description_is_an_error(tmp_path, content):
    (tmp_path / "weights.json").write_text(content)
    with pytest.raises(WeightsError):
        resolve(tmp_path, "heart")


def test_a_description_cannot_point_out_of_its_folder(tmp_path):
    content = {"format": 1, "name": "x", "role": "heart", "files": {"../a": 64 * "0"}}
    (tmp_path / "weights.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="not a plain file name"):
        resolve(tmp_path, "heart")


def test_a_role_is_any_name_and_no_path(tmp_path, calcium):
    found = write_description(calcium, name="x", role="liver-2", files=["model.safetensors"])
    assert resolve(calcium, "liver-2") == found
    with pytest.raises(WeightsError, match="holds liver-2 weights, not calcium weights"):
        resolve(calcium, "calcium")
    with pytest.raises(ValueError, match="a role is a name"):
        write_description(tmp_path, name="x", role="../liver", files=[])


def test_sets_not_fetched_yet_say_how(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert user_folder() == tmp_path / "deepcac2" / "weights"
    with pytest.raises(WeightsMissing, match="deepcac2 weights fetch platipy-heart"):
        resolve("platipy-heart", "heart")


ROLES = sorted(set(roles().values()))


def test_manifest_tells_what_every_set_is():
    entries = load_manifest()
    for role in ROLES:
        bundled = sum(e.default for e in entries.values() if e.role == role)
        assert bundled == 1 or (bundled == 0 and role in ("screening", "direct"))
    for name, entry in entries.items():
        assert entry.name == name
        assert entry.licence
        assert entry.training_data
        assert entry.intended_use
        assert (entry.folder is None) == bool(entry.source)


@pytest.mark.parametrize("role", ROLES)
def test_bundled_sets_are_complete_and_small(role):
    try:
        found = resolve("bundled", role)
    except WeightsMissing:
        pytest.skip(f"needs the bundled {role} weights, which this checkout does not have yet")
    verify(found)
    assert found.name in load_manifest()
    assert all((found.path / f).stat().st_size <= 30e6 for f in found.files)


def test_bundling_copies_the_set_and_updates_the_manifest(calcium, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "manifest.json").write_text(MANIFEST.read_text())
    found = bundle(calcium, weights)
    assert found.path == weights / "calcium"
    verify(found)
    rows = {r["name"]: r for r in json.loads((weights / "manifest.json").read_text())["sets"]}
    assert rows["test"]["files"] == dict(found.files)
    assert rows["test"]["licence"] == "CC0"
    before = json.loads(MANIFEST.read_text())["sets"]
    assert rows["platipy-heart"] == next(r for r in before if r["name"] == "platipy-heart")
    assert rows["test"]["domain"] == {}  # not that of the set before


def test_a_set_may_stand_beside_the_default(calcium, tmp_path):
    """Twice into the same folder is one set; the default of its role stays."""
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "manifest.json").write_text(MANIFEST.read_text())
    before = json.loads(MANIFEST.read_text())["sets"]
    for _ in range(2):
        verify(bundle(calcium, weights, beside="calcium-test"))
    rows = json.loads((weights / "manifest.json").read_text())["sets"]
    assert rows[:-1] == before
    row = {k: rows[-1][k] for k in ("name", "role", "folder", "default")}
    assert row == {"name": "test", "role": "calcium", "folder": "calcium-test", "default": False}


@pytest.mark.parametrize("role", ROLES)
def test_any_role_can_have_another_default(tmp_path, role):
    """As an image gets that is built with other weights: one of each role, and the others stay."""
    manifest = tmp_path / "manifest.json"
    content = json.loads(MANIFEST.read_text())
    content["sets"].append({"name": "theirs", "role": role, "source": {}})
    manifest.write_text(json.dumps(content))
    make_default("theirs", manifest)
    rows = json.loads(manifest.read_text())["sets"]
    defaults = {row["role"]: row["name"] for row in rows if row.get("default")}
    before = {row["role"]: row["name"] for row in content["sets"] if row.get("default")}
    assert defaults == {**before, role: "theirs"}
    assert sum(bool(row.get("default")) for row in rows) == len(ROLES)
    with pytest.raises(WeightsMissing, match="no weights 'nobodys'"):
        make_default("nobodys", manifest)


def test_two_descriptions_of_the_same_tensors_are_two_sets(calcium):
    """A result says which: they may use the tensors in another way."""
    before = describe(calcium)
    path = calcium / "weights.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peak_probability": 0.9}))
    after = describe(calcium)
    assert before.hash == after.hash
    assert before.identity() != after.identity()


def test_a_bundled_set_with_another_operating_point_is_refused(tmp_path, monkeypatch):
    try:
        own = resolve("bundled", "screening")
    except WeightsMissing:
        pytest.skip("needs the bundled screening weights, which this checkout does not have yet")
    shutil.copytree(own.path, tmp_path / "screening")
    monkeypatch.setattr("deepcac2.weights.store.PACKAGE_FOLDER", tmp_path)
    assert resolve("bundled", "screening").hash == own.hash
    description = tmp_path / "screening" / "weights.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps(content | {"threshold": 0.9}))
    with pytest.raises(WeightsAltered, match="not the set that the manifest lists"):
        resolve("bundled", "screening")


def test_the_domain_comes_with_the_set_and_goes_into_the_manifest(calcium, tmp_path):
    assert resolve(calcium, "calcium").domain is None
    domain = {"kernels": ["soft"], "noise_hu": [5.0, 90.0], "contrast": False, "measured_on": "phantoms"}
    write_description(calcium, name="test", role="calcium", files=["model.safetensors"], domain=domain)
    found = resolve(calcium, "calcium")
    assert found.domain == Domain(
        kernels=("soft",), noise_hu=(5.0, 90.0), contrast=False, measured_on="phantoms"
    )
    assert "domain" not in found.metadata
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "manifest.json").write_text(MANIFEST.read_text())
    bundle(calcium, weights)
    rows = {r["name"]: r for r in json.loads((weights / "manifest.json").read_text())["sets"]}
    assert rows["test"]["domain"] == domain


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ({"noise": [1, 2]}, "unknown key 'noise'"),
        ({"noise_hu": 5}, "noise_hu in the domain is"),
        ({"kvp": [140, 100]}, "kvp in the domain is"),
        ({"kvp": ["a", 100]}, "kvp in the domain is"),
        ({"kernels": "soft"}, "kernels in the domain is"),
        ({"contrast": "no"}, "contrast in the domain is"),
        ({"measured_on": 3}, "measured_on in the domain is"),
        (["soft"], "is an object"),
    ],
)
def test_a_domain_that_cannot_be_read_is_an_error(domain, words):
    with pytest.raises(WeightsError, match=words) as caught:
        Domain.parse(domain)
    assert "\n" not in str(caught.value)


def test_an_error_in_the_domain_names_the_file(calcium):
    path = calcium / "weights.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"domain": {"kvp": 120}}))
    with pytest.raises(WeightsError, match=r"weights\.json: kvp in the domain"):
        resolve(calcium, "calcium")
