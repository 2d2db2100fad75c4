"""Key files: made once, for their owner alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepcac2.errors import InputError
from deepcac2.system.secret import secret_key

RESULTS = Path("/nowhere/results")


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        key, made = secret_key(tmp_path / "new" / "key", apart_from=RESULTS)
    finally:
        os.umask(before)
    assert made
    assert len(key) == 32
    assert (tmp_path / "new" / "key").stat().st_mode & 0o777 == 0o600
    assert secret_key(tmp_path / "new" / "key", apart_from=RESULTS) == (key, False)
    assert secret_key(tmp_path / "other", apart_from=RESULTS)[0] != key
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["key", "new", "other"]


@pytest.mark.parametrize("content", ["", "00" * 31, "0" * 65, "xy" * 32, "00" * 3000])
def test_what_is_no_key(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(InputError, match="holds no key"):
        secret_key(path, apart_from=RESULTS)


def test_what_others_may_read_or_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("00" * 32)
    path.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        secret_key(path, apart_from=RESULTS)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no regular file"):
        secret_key(tmp_path / "pipe", apart_from=RESULTS)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError):
        secret_key(tmp_path / "link", apart_from=RESULTS)


def test_a_key_among_what_it_protects_is_refused_and_not_made(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "results")
    for inside in ("results/key", "results/logs/key", "link/key"):
        with pytest.raises(InputError, match="elsewhere"):
            secret_key(tmp_path / inside, apart_from=tmp_path / "results")
    assert not list(tmp_path.rglob("key"))
