"""The first administrator: a key that opens the API, on record, in a file of its own, and nowhere else."""

import stat
from pathlib import Path

import boto3
import pytest

from local import admin as command
from local.bootstrap import ADMIN, HOUSE
from shared.access.model import AccountKind, Scope
from shared.access.secrets import token_hash
from shared.access.table import find_api_key, get_account
from shared.guard.table import entries
from shared.runtime.dynamo import SyncDynamo


@pytest.mark.slow  # over a second of processor time
def test_the_first_key_opens_the_api_and_is_on_record_and_another_run_makes_another(
    dynamo: SyncDynamo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boto3.client("ssm").put_parameter(Name="/psx/test/house-account", Value=HOUSE, Type="String")
    files = [tmp_path / "first", tmp_path / "second"]
    assert [command.admin("test", file) for file in files] == [0, 0]
    said = capsys.readouterr()
    texts = [file.read_text().strip() for file in files]
    assert len(set(texts)) == 2
    for file, text in zip(files, texts, strict=True):
        key = dynamo.run(find_api_key("psx-test-access", token_hash(text)))
        assert key is not None
        assert (key.account_id, key.scopes) == (ADMIN, frozenset({Scope.ADMIN}))
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert text not in said.out + said.err
    house = dynamo.run(get_account("psx-test-access", HOUSE))
    assert house is not None
    assert house.kind is AccountKind.HOUSE
    told = dynamo.run(entries("psx-test-audit", f"acct#{ADMIN}", 10)).rows
    assert [entry.event.action for entry in told] == ["api_key_create", "api_key_create"]


def test_no_file_is_overwritten_and_a_stage_that_is_not_there_leaves_none(
    dynamo: SyncDynamo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = tmp_path / "held"
    held.write_text("kept")
    assert command.admin("test", held) == 2
    assert held.read_text() == "kept"
    assert command.admin("test", tmp_path / "new") == 2
    assert not (tmp_path / "new").exists()
    assert "is not deployed" in capsys.readouterr().err
