"""`safe_name` never lets an identifier leave its folder, and never maps two to one name."""

from __future__ import annotations

import random
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from deepcac2.dicom import safe_name

NASTY = [
    "", "_", "%5F", ".", "..", "...", "../../x", "/etc/passwd", "a/b", "a\\b", "C:\\x", "a\0b", "a\nb", " ",
    "a ", " a", "a.", ".a", "-rf", "CON", "con", "con.txt", "COM1", "CONSOLE", "%", "%2E", "~", "Ä",
    "A\u0308", "\u60a3\u8005", "x" * 119, "x" * 120, "x" * 121, "x" * 5000, "x" * 4999 + "y", "/" * 300,
    "\ud800", "a:b", "a*b?", "NUL.",
]  # fmt: skip


def is_one_component(name: str) -> bool:
    return (
        name not in ("", ".", "..")
        and len(name.encode()) <= 200
        and name.isascii()
        and name.isprintable()
        and PurePosixPath(name).parts == (name,)
        and PureWindowsPath(name).parts == (name,)
        and not set(name) & set('<>:"/\\|?* ')
        and not name.startswith((".", "-"))
        and not name.endswith(".")
    )


def test_ordinary_identifiers_stay_readable() -> None:
    assert safe_name("LIDC-IDRI-0306") == "LIDC-IDRI-0306"
    assert safe_name("1.3.6.1.4.1.14519") == "1.3.6.1.4.1.14519"
    assert safe_name("Müller 7") == "M%C3%BCller%207"


@pytest.mark.parametrize("identifier", NASTY)
def test_nasty_identifiers_become_one_component(identifier: str) -> None:
    assert is_one_component(safe_name(identifier))


def test_reserved_names_of_windows_are_escaped() -> None:
    for name in ("CON", "nul", "Com7", "lpt1.txt"):
        assert safe_name(name).startswith("%")


def test_random_identifiers_stay_distinct_single_components() -> None:
    rng = random.Random(7)
    alphabets = ["ab./\\%_~-", "0123456789.", "".join(map(chr, range(256))), "aé患%E9C3_~. \t"]
    identifiers = set(NASTY)
    for _ in range(20_000):
        alphabet = rng.choice(alphabets)
        identifiers.add("".join(rng.choices(alphabet, k=rng.choice((1, 2, 3, 8, 64, 200)))))
    # what looks like the output of another must not meet it
    identifiers |= {safe_name(i) for i in list(identifiers)}
    names = {i: safe_name(i) for i in identifiers}
    assert all(map(is_one_component, names.values()))
    assert len(set(names.values())) == len(identifiers)


def test_the_component_can_be_made(tmp_path: Path) -> None:
    for identifier in NASTY:
        (tmp_path / safe_name(identifier)).mkdir()
    assert len(list(tmp_path.iterdir())) == len(set(NASTY))
