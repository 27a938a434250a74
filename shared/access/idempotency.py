"""First responses to writes that carry an Idempotency-Key: kept for a day, replayed, never made twice.

A write is claimed before it runs. Whoever comes with the same key meanwhile waits for the first response. A claim whose
owner died lapses after `CLAIM_LIFE_MS`; whoever takes it over runs under the same work id, so that a write which names what
it makes after that id finds it made already.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from shared.runtime.dynamo import (
    DynamoRequest,
    Item,
    TransactItem,
    get_item,
    put_new,
    transact_put,
    update,
)

KEY: Final = re.compile(r"[A-Za-z0-9_-]{8,128}")
KEPT_MS: Final = 24 * 3_600_000
CLAIM_LIFE_MS: Final = 35_000
"""Longer than a function may run."""
BODY_MAX_BYTES: Final = 256 * 1024
_PASSING: Final = frozenset({401, 402, 403, 408, 409, 425, 429})
"""Answers that say nothing of the write itself: the same request may meet another one later."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One write of one caller under one key. `fingerprint` tells bodies apart."""

    operation_id: str
    fingerprint: str
    started_at_ms: int
    claimed_at_ms: int
    status: int | None = None
    content_type: str = ""
    body_sealed: str = ""


def operation_id(caller: str, key: str) -> str:
    """What a write is known by: the caller's credential (or address) and the key. Not to be turned back."""
    return hashlib.sha256(f"{caller}\n{key}".encode()).hexdigest()


def work_id(operation: Operation) -> str:
    """The id of the work itself: the same for every try within a day, another one when the key is used anew."""
    return hashlib.sha256(f"{operation.operation_id}:{operation.started_at_ms}".encode()).hexdigest()


def fingerprint(method: str, target: str, body: bytes) -> str:
    """What must be the same when a key comes again."""
    return hashlib.sha256(f"{method} {target}\n".encode() + body).hexdigest()


def is_kept(status: int) -> bool:
    """Whether a response is the outcome of the write, to be replayed."""
    return status < 500 and status not in _PASSING


def has_lapsed(operation: Operation, now_ms: int) -> bool:
    """Whether a claim may be taken over: its day is over, or its owner died without an answer."""
    if now_ms - operation.started_at_ms >= KEPT_MS:
        return True
    return operation.status is None and now_ms - operation.claimed_at_ms >= CLAIM_LIFE_MS


def _pk(operation: str) -> str:
    return f"idem#{operation}"


def _read(row: Item) -> Operation:
    return Operation(
        row["pk"].removeprefix("idem#"),
        row["fingerprint"],
        row["started_ms"],
        row["claimed_ms"],
        row.get("status"),
        row.get("content_type", ""),
        row.get("body_sealed", ""),
    )


def claim(table: str, operation: Operation) -> DynamoRequest[bool]:
    """Begin a write; False when its key is known."""
    return put_new(table, {"pk": _pk(operation.operation_id), "sk": "-", **_fields(operation)})


def _fields(operation: Operation) -> Mapping[str, object]:
    return {
        "fingerprint": operation.fingerprint,
        "started_ms": operation.started_at_ms,
        "claimed_ms": operation.claimed_at_ms,
        "ttl": (operation.started_at_ms + KEPT_MS) // 1000,
    }


def take_over(table: str, lapsed: Operation, fresh: Operation) -> DynamoRequest[Operation | None]:
    """Claim a lapsed write anew; None when somebody else was faster."""
    return update(
        table,
        _pk(lapsed.operation_id),
        "-",
        "SET fingerprint = :print, started_ms = :started, claimed_ms = :claimed, #ttl = :ttl "
        "REMOVE #status, content_type, body_sealed",
        {
            ":print": fresh.fingerprint,
            ":started": fresh.started_at_ms,
            ":claimed": fresh.claimed_at_ms,
            ":ttl": (fresh.started_at_ms + KEPT_MS) // 1000,
            ":before": lapsed.claimed_at_ms,
        },
        parse=_read,
        condition="claimed_ms = :before",
        names={"#ttl": "ttl", "#status": "status"},
    )


def find(table: str, operation: str) -> DynamoRequest[Operation | None]:
    """What is known of a write."""
    return get_item(table, _pk(operation), parse=_read)


def finish(
    table: str, claimed: Operation, status: int, content_type: str, body_sealed: str
) -> DynamoRequest[Operation | None]:
    """Keep the first response; None when the claim had lapsed and somebody else has it."""
    return update(
        table,
        _pk(claimed.operation_id),
        "-",
        "SET #status = :status, content_type = :type, body_sealed = :body",
        {":status": status, ":type": content_type, ":body": body_sealed, ":mine": claimed.claimed_at_ms},
        parse=_read,
        condition="claimed_ms = :mine",
        names={"#status": "status"},
    )


def release(table: str, claimed: Operation) -> DynamoRequest[Operation | None]:
    """The write came to nothing that may be kept: let the next try begin at once."""
    return update(
        table,
        _pk(claimed.operation_id),
        "-",
        "SET claimed_ms = :never",
        {":never": 0, ":mine": claimed.claimed_at_ms},
        parse=_read,
        condition="claimed_ms = :mine",
    )


def once_item(table: str, operation: str, now_ms: int) -> TransactItem:
    """For the transaction of a write that adds: fails when the same operation was written before."""
    ttl = (now_ms + KEPT_MS) // 1000 + 3600
    return transact_put(table, {"pk": f"done#{operation}", "sk": "-", "ttl": ttl})
