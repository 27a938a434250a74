"""A node's own key: made once, kept to itself, changed by one rename."""

import os
import stat
from pathlib import Path

import pytest

from infra.mesh.keys import KeyFolder, KeyRefused, PrivateKey


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path / "mesh")
    made = folder.own()
    assert KeyFolder(tmp_path / "mesh").own().public == made.public
    assert stat.S_IMODE((tmp_path / "mesh").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "mesh" / "key").stat().st_mode) == 0o600


def test_a_switch_makes_the_announced_key_the_own_one(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    old, following = folder.own(), folder.prepare()
    assert folder.own().public == old.public
    assert folder.switch().public == folder.own().public == following.public
    assert folder.following() is None


def test_an_announced_key_can_be_given_up(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    own = folder.own()
    folder.prepare()
    folder.abandon()
    folder.abandon()
    assert folder.following() is None
    assert folder.own().public == own.public


def test_a_key_that_others_can_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    folder.own()
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(KeyRefused, match="0600"):
        folder.own()
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "key").write_text("nonsense\n")
    with pytest.raises(KeyRefused, match="not a key") as refused:
        folder.own()
    assert "nonsense" not in str(refused.value)
    (tmp_path / "key").unlink()
    os.symlink("/dev/null", tmp_path / "key")
    with pytest.raises(KeyRefused):
        folder.own()


def test_a_private_key_does_not_print_itself(tmp_path: Path) -> None:
    key = PrivateKey.fresh()
    assert key.reveal() not in f"{key} {key!r} {[key]}"
