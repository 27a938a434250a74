"""DynamoDB requests as values, and the two executors that run them.

A room builds a `DynamoRequest[T]` purely; it names one low-level operation, its parameters and how to read
the answer.
`SyncDynamo` runs it in Lambda (boto3), `AsyncDynamo` in the nodes (aioboto3). A failed condition is an outcome that the
request maps to a value; anything else that goes wrong raises `StoreUnavailable` with no store's words in it.
Source: DynamoDB API reference, low-level operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar

from shared.runtime.dynamo_answers import read_fast

T = TypeVar("T")
Item = dict[str, Any]
"""A row as plain Python: str, int, bool, bytes, None, list and dict of these. No floats."""

CONNECT_TIMEOUT_S: Final = 2
READ_TIMEOUT_S: Final = 5
MAX_ATTEMPTS: Final = 4
CONNECTIONS_MAX: Final = 32
"""Of one synchronous client: as many requests as `fan_out` has under way at most."""
TRANSACTION_MAX_ITEMS: Final = 100


class StoreUnavailable(Exception):
    """The store did not answer or refused for a reason that is not the caller's: retry later, nothing is known."""


class Contended(StoreUnavailable):
    """Another transaction held one of the rows in that moment: nothing was written, and it may be tried again at once."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A condition did not hold. `failed` are the indexes of the items whose condition failed, in a transaction."""

    failed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DynamoRequest(Generic[T]):
    """One low-level call: `operation` in snake_case, `params` as boto3 takes them, `parse` for the answer.

    `on_conflict` maps a failed condition to a value; without it a failed condition is a bug and raises.
    """

    operation: str
    params: Mapping[str, Any]
    parse: Callable[[Mapping[str, Any]], T]
    on_conflict: Callable[[Conflict], T] | None = None


def marshal_value(value: object) -> dict[str, Any]:
    """One Python value as a DynamoDB attribute value. Raises TypeError for floats and unknown types."""
    match value:
        case None:
            return {"NULL": True}
        case bool():
            return {"BOOL": value}
        case str():
            return {"S": value}
        case int():
            return {"N": str(value)}
        case bytes():
            return {"B": value}
        case list() | tuple():
            return {"L": [marshal_value(v) for v in value]}
        case dict():
            return {"M": {str(k): marshal_value(v) for k, v in value.items()}}
        case _:
            raise TypeError(f"{type(value).__name__} does not go into the store")


def unmarshal_value(attribute: Mapping[str, Any]) -> Any:
    """The inverse of `marshal_value`; a stored number that is not an integer raises ValueError."""
    kind, value = next(iter(attribute.items()))
    match kind:
        case "S" | "BOOL":
            return value
        case "N":
            return int(value)
        case "NULL":
            return None
        case "B":
            return bytes(value)
        case "L":
            return [unmarshal_value(v) for v in value]
        case "M":
            return {k: unmarshal_value(v) for k, v in value.items()}
        case _:
            raise TypeError(f"attribute kind {kind} is not used here")


def marshal(item: Mapping[str, object]) -> dict[str, Any]:
    """A row as DynamoDB attributes. `None` values are left out: an absent attribute says the same and indexes well."""
    return {k: marshal_value(v) for k, v in item.items() if v is not None}


def unmarshal(attributes: Mapping[str, Any]) -> Item:
    """DynamoDB attributes as a row."""
    return {k: unmarshal_value(v) for k, v in attributes.items()}


def key(pk: str, sk: str = "-") -> dict[str, Any]:
    """The primary key every table of ours has."""
    return {"pk": {"S": pk}, "sk": {"S": sk}}


def get_item(table: str, pk: str, sk: str = "-", *, parse: Callable[[Item], T]) -> DynamoRequest[T | None]:
    """A strongly consistent read of one row; None when it is not there."""

    def read(answer: Mapping[str, Any]) -> T | None:
        attributes = answer.get("Item")
        return None if attributes is None else parse(unmarshal(attributes))

    return DynamoRequest("get_item", {"TableName": table, "Key": key(pk, sk), "ConsistentRead": True}, read)


def put_new(table: str, item: Mapping[str, object]) -> DynamoRequest[bool]:
    """Put a row unless its key exists. True when this call wrote it."""
    return put_if(table, item, "attribute_not_exists(pk)")


def put_if(table: str, item: Mapping[str, object], condition: str) -> DynamoRequest[bool]:
    """Put a row if what stands there is so. True when this call wrote it."""
    return DynamoRequest(
        "put_item",
        {"TableName": table, "Item": marshal(item), "ConditionExpression": condition},
        lambda _: True,
        lambda _: False,
    )


def put(table: str, item: Mapping[str, object]) -> DynamoRequest[None]:
    """Put a row, whatever stood there."""
    return DynamoRequest("put_item", {"TableName": table, "Item": marshal(item)}, lambda _: None)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a query: its rows, and where the next page starts (None at the end)."""

    rows: tuple[T, ...]
    next_key: Mapping[str, Any] | None


def query(
    table: str,
    condition: str,
    values: Mapping[str, object],
    *,
    parse: Callable[[Item], T],
    limit: int,
    index: str | None = None,
    forward: bool = True,
    start: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
) -> DynamoRequest[Page[T]]:
    """One page of a query. `condition` is the key condition; `values` its placeholders, `:x` -> value."""
    params: dict[str, Any] = {
        "TableName": table,
        "KeyConditionExpression": condition,
        "ExpressionAttributeValues": {k: marshal_value(v) for k, v in values.items()},
        "Limit": limit,
        "ScanIndexForward": forward,
    }
    if names:
        params["ExpressionAttributeNames"] = dict(names)
    if index is None:
        params["ConsistentRead"] = True
    else:
        params["IndexName"] = index
    if start is not None:
        params["ExclusiveStartKey"] = start

    return DynamoRequest("query", params, lambda answer: _page(answer, parse))


def scan(
    table: str,
    prefix: str,
    *,
    parse: Callable[[Item], T],
    limit: int,
    start: Mapping[str, Any] | None = None,
    segment: tuple[int, int] | None = None,
) -> DynamoRequest[Page[T]]:
    """One page of a scan of the rows whose `pk` begins with `prefix`. For jobs that look at everything.

    `segment` is (number, how many there are): each row is in one of them, the same one in every scan.
    """
    params: dict[str, Any] = {
        "TableName": table,
        "FilterExpression": "begins_with(pk, :prefix)",
        "ExpressionAttributeValues": {":prefix": {"S": prefix}},
        "Limit": limit,
    }
    if start is not None:
        params["ExclusiveStartKey"] = start
    if segment is not None:
        params["Segment"], params["TotalSegments"] = segment
    return DynamoRequest("scan", params, lambda answer: _page(answer, parse))


BATCH_GET_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Batch(Generic[T]):
    """Rows of a batch, and the keys that the store had no time for: ask for those again."""

    rows: tuple[T, ...]
    left: tuple[tuple[str, str], ...]


def batch_get(
    table: str, keys: Sequence[tuple[str, str]], *, parse: Callable[[Item], T]
) -> DynamoRequest[Batch[T]]:
    """Strongly consistent reads of up to 100 rows by (pk, sk), in no order; rows that are not there are left out."""
    if not 0 < len(keys) <= BATCH_GET_MAX:
        raise ValueError(f"a batch holds 1 to {BATCH_GET_MAX} keys, not {len(keys)}")
    asked = {"Keys": [key(pk, sk) for pk, sk in keys], "ConsistentRead": True}

    def read(answer: Mapping[str, Any]) -> Batch[T]:
        left = answer.get("UnprocessedKeys", {}).get(table, {}).get("Keys", ())
        rows = tuple(parse(unmarshal(item)) for item in answer["Responses"].get(table, ()))
        return Batch(rows, tuple((k["pk"]["S"], k["sk"]["S"]) for k in left))

    return DynamoRequest("batch_get_item", {"RequestItems": {table: asked}}, read)


def _page(answer: Mapping[str, Any], parse: Callable[[Item], T]) -> Page[T]:
    rows = tuple(parse(unmarshal(item)) for item in answer.get("Items", ()))
    return Page(rows, answer.get("LastEvaluatedKey"))


TransactItem = Mapping[str, Any]
"""One entry of TransactItems as boto3 takes it: one of Put, Update, Delete, ConditionCheck and its parameters."""


def transact_put(table: str, item: Mapping[str, object], *, new: bool = True) -> TransactItem:
    """A put inside a transaction; `new` makes it conditional on the key's absence."""
    entry: dict[str, Any] = {"TableName": table, "Item": marshal(item)}
    if new:
        entry["ConditionExpression"] = "attribute_not_exists(pk)"
    return {"Put": entry}


def transact_delete(
    table: str, pk: str, sk: str = "-", *, condition: str = "", values: Mapping[str, object] | None = None
) -> TransactItem:
    """A deletion inside a transaction."""
    entry: dict[str, Any] = {"TableName": table, "Key": key(pk, sk)}
    if condition:
        entry["ConditionExpression"] = condition
    if values:
        entry["ExpressionAttributeValues"] = {k: marshal_value(v) for k, v in values.items()}
    return {"Delete": entry}


def transact_update(
    table: str,
    pk: str,
    sk: str,
    update: str,
    values: Mapping[str, object],
    *,
    condition: str | None = None,
    names: Mapping[str, str] | None = None,
) -> TransactItem:
    """An update inside a transaction."""
    return {"Update": _update_params(table, pk, sk, update, values, condition, names)}


def _update_params(
    table: str,
    pk: str,
    sk: str,
    expression: str,
    values: Mapping[str, object],
    condition: str | None,
    names: Mapping[str, str] | None,
) -> dict[str, Any]:
    params: dict[str, Any] = {"TableName": table, "Key": key(pk, sk), "UpdateExpression": expression}
    if values:
        params["ExpressionAttributeValues"] = {k: marshal_value(v) for k, v in values.items()}
    if condition is not None:
        params["ConditionExpression"] = condition
    if names:
        params["ExpressionAttributeNames"] = dict(names)
    return params


def update(
    table: str,
    pk: str,
    sk: str,
    expression: str,
    values: Mapping[str, object],
    *,
    parse: Callable[[Item], T],
    condition: str | None = None,
    names: Mapping[str, str] | None = None,
) -> DynamoRequest[T | None]:
    """Update one row and read it whole as it then is; None when the condition did not hold."""
    params = _update_params(table, pk, sk, expression, values, condition, names)
    return DynamoRequest(
        "update_item",
        {**params, "ReturnValues": "ALL_NEW"},
        lambda answer: parse(unmarshal(answer["Attributes"])),
        lambda _: None,
    )


def transact(items: Sequence[TransactItem]) -> DynamoRequest[Conflict | None]:
    """All of `items` or none (at most 100). None when they were written, else which conditions failed."""
    if not 0 < len(items) <= TRANSACTION_MAX_ITEMS:
        raise ValueError(f"a transaction holds 1 to {TRANSACTION_MAX_ITEMS} items, not {len(items)}")
    return DynamoRequest(
        "transact_write_items", {"TransactItems": list(items)}, lambda _: None, lambda conflict: conflict
    )


_ENTRY_OF: Final = {"put_item": "Put", "update_item": "Update", "delete_item": "Delete"}


def as_items(write: DynamoRequest[Any]) -> list[TransactItem]:
    """A write as entries of a transaction, so that more can be written with it."""
    if write.operation == "transact_write_items":
        return list(write.params["TransactItems"])
    params = {name: value for name, value in write.params.items() if name != "ReturnValues"}
    return [{_ENTRY_OF[write.operation]: params}]


def answered_by(run: Callable[[DynamoRequest[Any]], Any], write: DynamoRequest[T]) -> T:
    """What a write that was carried out by `as_items` answers; an update's row is read, and may have changed since."""
    if write.operation != "update_item":
        return write.parse({})
    asked = {name: write.params[name] for name in ("TableName", "Key")}
    found = run(
        DynamoRequest("get_item", {**asked, "ConsistentRead": True}, lambda answer: answer.get("Item"))
    )
    return write.parse({"Attributes": found}) if found is not None else refused_by(write, Conflict((0,)))


def refused_by(write: DynamoRequest[T], conflict: Conflict) -> T:
    """What a write answers when its condition did not hold."""
    if write.on_conflict is None:
        raise ValueError(f"{write.operation} has no condition that could fail")
    return write.on_conflict(conflict)


def _settle(request: DynamoRequest[T], error: Exception) -> T:
    """The value of a request whose call raised: its conflict, or StoreUnavailable."""
    answer: Mapping[str, Any] = getattr(error, "response", None) or {}
    code = answer.get("Error", {}).get("Code", "")
    if code == "ConditionalCheckFailedException":
        return _conflict(request, Conflict((0,)), error)
    if code == "TransactionCanceledException":
        reasons = [str(r.get("Code", "None")) for r in answer.get("CancellationReasons", ())]
        failed = tuple(i for i, reason in enumerate(reasons) if reason == "ConditionalCheckFailed")
        others = {r for r in reasons if r not in {"None", "ConditionalCheckFailed"}}
        if failed and not others:
            return _conflict(request, Conflict(failed), error)
        if others == {"TransactionConflict"}:
            raise Contended(f"{request.operation}: contended") from error
    raise StoreUnavailable(f"{request.operation}: {code or type(error).__name__}") from error


def _conflict(request: DynamoRequest[T], conflict: Conflict, error: Exception) -> T:
    if request.on_conflict is None:
        raise error
    return request.on_conflict(conflict)


class RunsDynamo(Protocol):
    """Whatever runs requests synchronously: the executor, or a test's own."""

    def run(self, request: DynamoRequest[T]) -> T: ...


class SyncDynamo:
    """Runs requests with a boto3 client; made once per Lambda container."""

    def __init__(self, client: Any = None) -> None:
        self._client = client if client is not None else _sync_client()
        read_fast(self._client)

    def run(self, request: DynamoRequest[T]) -> T:
        """Run one request. Raises StoreUnavailable when nothing is known of its outcome."""
        import botocore.exceptions as failures  # noqa: PLC0415 - the nodes' cold start does not need it

        try:
            answer = getattr(self._client, request.operation)(**request.params)
        except (failures.ClientError, failures.BotoCoreError) as error:
            return _settle(request, error)
        return request.parse(answer)


def fan_out(
    run: Callable[[DynamoRequest[T]], T], requests: Sequence[DynamoRequest[T]], at_once: int
) -> list[T]:
    """Run independent requests side by side, answers in their order. Raises what the first failing one raised."""
    if at_once <= 1 or len(requests) <= 1:
        return [run(request) for request in requests]
    contexts = [copy_context() for _ in requests]  # who asks is known in every thread
    with ThreadPoolExecutor(min(at_once, len(requests), CONNECTIONS_MAX)) as threads:
        return list(threads.map(lambda context, request: context.run(run, request), contexts, requests))


def _sync_client() -> Any:
    import boto3  # noqa: PLC0415 - nodes use aioboto3 alone
    from botocore.config import Config  # noqa: PLC0415

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
        max_pool_connections=CONNECTIONS_MAX,
        parameter_validation=False,  # the server validates too, and this is a tenth of a request
        user_agent="psx",  # the library's own is put together anew for each request, another twentieth
    )
    return boto3.client("dynamodb", config=config)


class AsyncDynamo:
    """Runs requests with an aioboto3 client: `async with AsyncDynamo() as dynamo`."""

    def __init__(self) -> None:
        self._context: Any = None
        self._client: Any = None

    async def __aenter__(self) -> AsyncDynamo:
        import aioboto3  # noqa: PLC0415 - Lambda uses boto3 alone
        from botocore.config import Config  # noqa: PLC0415

        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
            parameter_validation=False,  # the server validates too, and here it would run on the byte path's loop
        )
        self._context = aioboto3.Session().client("dynamodb", config=config)
        self._client = await self._context.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._context.__aexit__(kind, error, trace)

    async def run(self, request: DynamoRequest[T]) -> T:
        """Run one request. Raises StoreUnavailable when nothing is known of its outcome; cancelling is safe."""
        import botocore.exceptions as failures  # noqa: PLC0415

        try:
            answer = await getattr(self._client, request.operation)(**request.params)
        except (failures.ClientError, failures.BotoCoreError, OSError) as error:
            return _settle(request, error)
        return request.parse(answer)
