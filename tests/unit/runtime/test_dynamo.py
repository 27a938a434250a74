"""Requests are values: they hold what is asked, read the answer, and turn a failed condition into a value."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.runtime.dynamo import (
    Conflict,
    DynamoRequest,
    StoreUnavailable,
    SyncDynamo,
    batch_get,
    get_item,
    marshal,
    marshal_value,
    put,
    put_new,
    query,
    scan,
    transact,
    transact_put,
    transact_update,
    unmarshal,
    update,
)

TABLE = "psx-test-guard"

scalars = st.none() | st.booleans() | st.integers(-(10**37), 10**37) | st.text() | st.binary()
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=8
)


@given(st.dictionaries(st.text(min_size=1), values, max_size=5))
def test_a_row_reads_back_as_written_but_for_absent_values(row: dict[str, Any]) -> None:
    assert unmarshal(marshal(row)) == {k: v for k, v in row.items() if v is not None}


@pytest.mark.parametrize("value", [1.5, object(), {1, 2}])
def test_floats_and_strangers_do_not_go_into_the_store(value: object) -> None:
    with pytest.raises(TypeError):
        marshal_value(value)


def test_unused_attribute_kinds_are_a_bug() -> None:
    with pytest.raises(TypeError):
        unmarshal({"x": {"SS": ["a"]}})


def test_a_missing_row_is_none(dynamo: SyncDynamo) -> None:
    assert dynamo.run(get_item(TABLE, "nothing", parse=dict)) is None


def test_only_the_first_put_of_a_key_is_written(dynamo: SyncDynamo) -> None:
    assert dynamo.run(put_new(TABLE, {"pk": "a", "sk": "-", "n": 1}))
    assert not dynamo.run(put_new(TABLE, {"pk": "a", "sk": "-", "n": 2}))
    assert dynamo.run(get_item(TABLE, "a", parse=lambda i: i["n"])) == 1


def test_a_put_replaces(dynamo: SyncDynamo) -> None:
    dynamo.run(put(TABLE, {"pk": "a", "sk": "-", "n": 1}))
    dynamo.run(put(TABLE, {"pk": "a", "sk": "-", "n": 2}))
    assert dynamo.run(get_item(TABLE, "a", parse=lambda i: i["n"])) == 2


def test_an_update_reads_the_row_back_or_says_that_its_condition_failed(dynamo: SyncDynamo) -> None:
    add = update(TABLE, "a", "-", "ADD n :one", {":one": 1}, parse=lambda i: i["n"])
    assert dynamo.run(add) == 1
    assert dynamo.run(add) == 2
    refused = update(
        TABLE,
        "a",
        "-",
        "SET #m = :x",
        {":x": 1},
        parse=dict,
        condition="n > :x AND n < :x",
        names={"#m": "m"},
    )
    assert dynamo.run(refused) is None


def test_pages_continue_where_the_last_one_ended(dynamo: SyncDynamo) -> None:
    for n in range(5):
        dynamo.run(put(TABLE, {"pk": "many", "sk": f"{n}", "n": n}))
    first = dynamo.run(query(TABLE, "pk = :pk", {":pk": "many"}, parse=lambda i: i["n"], limit=3))
    rest = dynamo.run(
        query(TABLE, "pk = :pk", {":pk": "many"}, parse=lambda i: i["n"], limit=3, start=first.next_key)
    )
    assert first.rows + rest.rows == (0, 1, 2, 3, 4)
    assert rest.next_key is None
    scanned = dynamo.run(scan(TABLE, "man", parse=lambda i: i["n"], limit=10))
    assert sorted(scanned.rows) == [0, 1, 2, 3, 4]


def test_a_transaction_is_all_or_nothing_and_names_what_failed(dynamo: SyncDynamo) -> None:
    dynamo.run(put(TABLE, {"pk": "b", "sk": "-"}))
    items = [transact_put(TABLE, {"pk": "c", "sk": "-"}), transact_put(TABLE, {"pk": "b", "sk": "-"})]
    assert dynamo.run(transact(items)) == Conflict((1,))
    assert dynamo.run(get_item(TABLE, "c", parse=dict)) is None
    written = [
        transact_put(TABLE, {"pk": "b", "sk": "-", "n": 1}, new=False),
        transact_update(TABLE, "d", "-", "SET n = :n", {":n": 7}),
    ]
    assert dynamo.run(transact(written)) is None
    assert dynamo.run(get_item(TABLE, "d", parse=lambda i: i["n"])) == 7


@pytest.mark.parametrize("count", [0, 101])
def test_a_transaction_has_a_bound(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 100"):
        transact([transact_put(TABLE, {"pk": "x", "sk": "-"})] * count)


def test_an_unknown_table_is_the_store_not_answering(dynamo: SyncDynamo) -> None:
    with pytest.raises(StoreUnavailable, match="get_item: ResourceNotFoundException"):
        dynamo.run(get_item("psx-test-nowhere", "a", parse=dict))


def test_a_failed_condition_nobody_expected_is_a_bug(dynamo: SyncDynamo) -> None:
    expected = put_new(TABLE, {"pk": "a", "sk": "-"})
    unexpected = DynamoRequest(expected.operation, expected.params, lambda _: True)
    assert dynamo.run(unexpected)
    with pytest.raises(Exception, match="conditional request failed"):
        dynamo.run(unexpected)


def test_rows_of_large_reads_are_those_of_small_ones(dynamo: SyncDynamo) -> None:
    """Whatever kind an attribute has: one row is read by botocore's parser, the page by ours."""
    row: dict[str, object] = {
        "pk": "dev#1",
        "sk": "-",
        "text": "ü",
        "number": 10**20,
        "yes": True,
        "raw": bytes(range(256)),
        "list": ["a", 1, {"B": "no bytes"}, b"\x00"],
        "map": {"B": "text", "S": {"N": 1}},
        "gone": None,
    }
    table = "psx-test-devices"
    dynamo.run(put(table, row))
    alone = dynamo.run(get_item(table, "dev#1", parse=dict))
    page = dynamo.run(scan(table, "dev#", parse=dict, limit=10))
    asked = dynamo.run(query(table, "pk = :pk", {":pk": "dev#1"}, parse=dict, limit=10))
    batch = dynamo.run(batch_get(table, [("dev#1", "-"), ("dev#2", "-")], parse=dict))
    assert alone == {name: value for name, value in row.items() if value is not None}
    assert [list(found) for found in (page.rows, asked.rows, batch.rows)] == [[alone]] * 3


def test_a_refused_large_read_is_told_as_any_other(dynamo: SyncDynamo) -> None:
    with pytest.raises(StoreUnavailable, match="ResourceNotFoundException"):
        dynamo.run(scan("psx-test-nothing", "x", parse=dict, limit=1))
