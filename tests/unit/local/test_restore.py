"""docs/operations/restore.md, gone through: recovery into a copy, rows that were lost put back, and what never is."""

from typing import Any

import pytest

from local.restore import MAY, restore
from local.tables import tables
from shared.runtime.dynamo import SyncDynamo, put
from tests.support.stores import PREFIX, STAGE


@pytest.fixture
def client(dynamo: SyncDynamo) -> Any:
    """The in-process tables, with recovery on as the template has it."""
    found: Any = dynamo._client
    for table in (*MAY, "ledger"):
        found.update_continuous_backups(
            TableName=PREFIX + table, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
        )
    return found


def recover(client: Any, table: str) -> None:
    client.restore_table_to_point_in_time(
        SourceTableName=PREFIX + table,
        TargetTableName=f"{PREFIX}{table}-restored",
        UseLatestRestorableTime=True,
    )


def lose(client: Any, table: str, pk: str) -> None:
    client.delete_item(TableName=PREFIX + table, Key={"pk": {"S": pk}, "sk": {"S": "-"}})


def row(client: Any, table: str, pk: str) -> Any:
    return client.get_item(TableName=PREFIX + table, Key={"pk": {"S": pk}, "sk": {"S": "-"}}).get("Item")


def test_lost_rows_come_back_and_rows_that_stand_are_left(
    dynamo: SyncDynamo, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for pk in ("pak#1", "pak#2", "secret#9"):
        dynamo.run(put(PREFIX + "access", {"pk": pk, "sk": "-", "used_bytes": 5}))
    recover(client, "access")
    lose(client, "access", "pak#1")
    lose(client, "access", "secret#9")  # on purpose: it must stay away
    dynamo.run(put(PREFIX + "access", {"pk": "pak#2", "sk": "-", "used_bytes": 7}))
    assert restore(STAGE, "access", "pak#", write=False, client=client) == 0
    assert capsys.readouterr().out == "missing pak#1 / -\n"
    assert row(client, "access", "pak#1") is None
    assert restore(STAGE, "access", "pak#", write=True, client=client) == 0
    assert row(client, "access", "pak#1")["used_bytes"] == {"N": "5"}
    assert row(client, "access", "pak#2")["used_bytes"] == {"N": "7"}
    assert row(client, "access", "secret#9") is None
    assert restore(STAGE, "access", "pak#", write=True, client=client) == 0
    assert capsys.readouterr().out == "written pak#1 / -\n"


def test_a_recovered_copy_has_the_keys_and_indexes_of_the_table(client: Any) -> None:
    recover(client, "access")
    made = client.describe_table(TableName=f"{PREFIX}access-restored")["Table"]
    declared = next(t for t in tables(STAGE).values() if t["TableName"] == f"{PREFIX}access")
    assert made["KeySchema"] == declared["KeySchema"]
    found = {index["IndexName"] for index in made["GlobalSecondaryIndexes"]}
    assert found == {index["IndexName"] for index in declared["GlobalSecondaryIndexes"]}


@pytest.mark.parametrize(
    ("table", "pk"), [("sales", "owed#1"), ("usage", "pak#1"), ("ledger", "transfer#1"), ("audit", "pak#1")]
)
def test_what_would_count_twice_or_break_a_chain_is_never_copied_back(
    dynamo: SyncDynamo, client: Any, table: str, pk: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if table in MAY:
        dynamo.run(put(PREFIX + table, {"pk": pk, "sk": "-"}))
        recover(client, table)
        lose(client, table, pk)
    assert restore(STAGE, table, pk, write=True, client=client) == 2
    assert "never copied back" in capsys.readouterr().err
    assert row(client, table, pk) is None


def test_a_copy_that_was_not_made_is_said(client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert restore(STAGE, "grades", "grade#", write=True, client=client) == 2
    assert "ResourceNotFoundException" in capsys.readouterr().err
