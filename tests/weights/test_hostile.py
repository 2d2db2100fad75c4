"""Pickles, checkpoints and descriptions that were made to harm: one error each, soon, in little memory."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from deepcac2.cli.main import main
from deepcac2.errors import WeightsError, WeightsUnsupported
from deepcac2.weights import convert_nnunet_v2
from deepcac2.weights.checkpoints import read_checkpoint, read_plain_pickle

HUGE = b"\x8a\x06" + struct.pack("<Q", 10**13)[:6]  # LONG1
SHORT = b"\x8c"  # SHORT_BINUNICODE


def call(module: str, name: str, arguments: bytes) -> bytes:
    """A pickle that calls something with a tuple of arguments."""
    return f"\x80\x04c{module}\n{name}\n(".encode("latin1") + arguments + b"tR."


def named(text: str) -> bytes:
    return SHORT + bytes([len(text)]) + text.encode()


def tuples_of_tuples(depth: int) -> bytes:
    """A dictionary whose key is ((…), (…)) of one object: hashing it takes 2**depth steps."""
    return b"\x80\x04})" + b"q\x000h\x00h\x00\x86" * depth + b"Ns."


PICKLES = {
    "bytearray of 10 TB": call("builtins", "bytearray", HUGE),
    "bytearray8 of 10 TB": b"\x80\x05\x96" + struct.pack("<Q", 10**13) + b".",
    "list of a range": call("builtins", "list", b"cbuiltins\nrange\n(" + HUGE + b"tR"),
    "set of a range": call("builtins", "set", b"cbuiltins\nrange\n(" + HUGE + b"tR"),
    "array of 10 TB": call("numpy", "ndarray", b"(" + HUGE + b"t"),
    "array state without data": b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n("
    + b"cnumpy\nndarray\n(K\x00tC\x01btR(K\x01(" + HUGE + b"tcnumpy\ndtype\n(" + named("f8")
    + b"tR\x89C\x00tb.",
    "array of objects": call("numpy", "dtype", named("O8") + b"\x89\x88"),
    "dtype of 10 TB": call("numpy", "dtype", named("V9999999999999")),
    "foreign codec": call("_codecs", "encode", named("x") + named("rot13")),
    "memo of 4 billion": b"\x80\x04Nr\xff\xff\xff\xff.",
    "hash without end": tuples_of_tuples(60),
    "deep lists": b"\x80\x04" + b"](" * 100_000 + b"e" * 100_000 + b".",
    "code": call("os", "system", named("true")),
    "state of a function": b"\x80\x04c_codecs\nencode\n}" + named("a") + b"K\x01sb.",
    "same bytes again and again": b"\x80\x04c_codecs\nencode\nq\x00X" + struct.pack("<I", 1 << 20)
    + b"x" * (1 << 20) + b"q\x01]q\x02(" + b"h\x00h\x01" + named("latin1") + b"\x86R"
    + b"h\x00h\x01\x85R" * 5000 + b"e.",
}  # fmt: skip


def test_no_pickle_takes_more_than_it_has(tmp_path: Path) -> None:
    """All in one process, which may take half a GB and a minute. At full size they asked for 10 TB, or had
    no end."""
    for name, content in PICKLES.items():
        (tmp_path / f"{name}.pkl").write_bytes(content)
    code = f"""
import resource
from pathlib import Path
import numpy, deepcac2.weights.checkpoints as door
from deepcac2.errors import WeightsUnsupported
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for path in sorted(Path({str(tmp_path)!r}).iterdir()):
    try:
        door.read_plain_pickle(path)
        print("read", path.stem)
    except WeightsUnsupported as error:
        assert "\\n" not in str(error) and len(str(error)) < 500, error
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["read deep lists", "read memo of 4 billion"]  # plain data, both


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_comes_back_as_it_was(tmp_path: Path, protocol: int) -> None:
    plain = {
        "spacing": np.array([2.5, 0.7, 0.7]),
        "big": np.arange(6, dtype=">i4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "flags": np.array([True, False]),
        "names": np.array(["a", "bc"]),
        "number": np.float32(1.5),
        "bytes": bytes(range(256)),
        "set": {1, 2},
        "ordered": OrderedDict([(0, [1, (2, 3)]), ((1, 2), None)]),
        "text": "Müller",
    }
    (tmp_path / "plans.pkl").write_bytes(pickle.dumps(plain, protocol))
    found = read_plain_pickle(tmp_path / "plans.pkl")
    assert list(found) == list(plain)
    for name, value in plain.items():
        if isinstance(value, np.ndarray):
            assert found[name].dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
            np.testing.assert_array_equal(found[name], value)
        else:
            assert found[name] == value


def test_a_packed_checkpoint_is_not_unpacked(tmp_path: Path) -> None:
    """Torch stores its tensors as they are: what is deflated is 1,000 times its size."""
    torch.save({"network_weights": {"a": torch.zeros(1 << 18)}}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")["network_weights"]["a"].shape == (1 << 18,)
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info), zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsUnsupported, match="packed"):
        read_checkpoint(tmp_path / "b.pth")


def test_torchs_advice_is_not_passed_on(tmp_path: Path) -> None:
    torch.save({"network_weights": {}, "x": pathless}, tmp_path / "a.pth")
    with pytest.raises(WeightsUnsupported) as caught:
        read_checkpoint(tmp_path / "a.pth")
    assert "weights_only" not in str(caught.value)
    assert "pathless" in str(caught.value)
    (tmp_path / "b.pth").write_bytes(b"no checkpoint")
    with pytest.raises(WeightsUnsupported) as caught:
        read_checkpoint(tmp_path / "b.pth")
    assert "weights_only" not in str(caught.value)


def pathless() -> None:
    """A function that a checkpoint names."""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder of nnU-Net v2 results, as far as the converter reads it."""
    folder = tmp_path / "results"
    (folder / "fold_0").mkdir(parents=True)
    plan = {"spacing": [1, 1, 1], "patch_size": [8, 8, 8], "normalization_schemes": ["CTNormalization"]}
    intensity = {"mean": 0, "std": 1, "percentile_00_5": -1, "percentile_99_5": 1}
    plans = {
        "dataset_name": "Dataset001_Heart",
        "configurations": {"3d_fullres": plan},
        "foreground_intensity_properties_per_channel": {"0": intensity},
    }
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "heart": 1}}))
    save(folder)
    return folder


def save(folder: Path, **changes: object) -> None:
    checkpoint = {
        "network_weights": {"a": torch.zeros(3)},
        "init_args": {"configuration": "3d_fullres"},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint | changes, folder / "fold_0" / "checkpoint_final.pth")


CHECKPOINTS = {
    "numbers repeated": {"network_weights": {"a": torch.zeros(1).expand(1 << 40)}},
    "one tensor often": {"network_weights": dict.fromkeys(map(str, range(50)), torch.zeros(9999))},
    "no tensors": {"network_weights": {"a": 1}},
    "weights are a list": {"network_weights": [1]},
    "no configuration": {"init_args": {}},
    "unknown configuration": {"init_args": {"configuration": "4d"}},
    "configuration is a list": {"init_args": {"configuration": ["3d_fullres"]}},
    "trainer is a number": {"trainer_name": 5},
    "axes are text": {"inference_allowed_mirroring_axes": ("x",)},
}


@pytest.mark.parametrize("changes", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints_that_are_not_understood(
    results: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    assert convert_nnunet_v2(results, tmp_path / "out").name == "Dataset001_Heart"
    save(results, **changes)
    with pytest.raises(WeightsUnsupported) as caught:
        convert_nnunet_v2(results, tmp_path / "out2")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plans.json", "[" * 200_000),
        ("plans.json", "{}"),
        ("plans.json", '{"dataset_name": ["x"]}'),
        ("plans.json", '{"dataset_name": "x", "configurations": {"3d_fullres": []}}'),
        ("dataset.json", "{}"),
        ("dataset.json", '{"labels": []}'),
        ("dataset.json", '{"labels": {"heart": "one"}}'),
        ("dataset.json", '{"labels": {"heart": 1}, "x": ' + "[" * 1000 + "]" * 1000 + "}"),
        ("dataset.json", "\ud800"),
    ],
)
def test_plans_that_are_not_understood(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    (results / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    assert main(["weights", "convert-nnunet-v2", str(results), str(tmp_path / "out")]) == 43
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("info", [[], {"name": ["x"]}, {"name": "nnUNetTrainerV2"}, {"name": "x", "init": 5}])
def test_v1_results_that_are_not_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], info: object
) -> None:
    fold = tmp_path / "v1" / "fold_0"
    fold.mkdir(parents=True)
    (fold.parent / "plans.pkl").write_bytes(pickle.dumps({"plans_per_stage": {0: {}}}))
    (fold / "model_final_checkpoint.model").touch()
    (fold / "model_final_checkpoint.model.pkl").write_bytes(pickle.dumps(info))
    assert main(["weights", "convert-nnunet-v1", str(fold.parent), str(tmp_path / "out")]) == 43
    captured = capsys.readouterr().err
    assert "is no nnU-Net v1 result that is understood" in captured
    assert captured.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"format": 1e999}', b"\xff", b'"\\ud800"'])
def test_a_description_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (tmp_path / "weights.json").write_bytes(content)
    assert main(["weights", "verify", str(tmp_path)]) == WeightsError.exit_code
    assert capsys.readouterr().err.count("\n") == 1
