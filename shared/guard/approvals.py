"""Requests for a human's yes, read by pynamodb: only Lambda touches these rows, never a node's loop.

Proposing and deciding are conditional items of the transaction that puts them on record: a request is decided once, and
never by whoever proposed it.
"""

import json
from collections.abc import Mapping
from typing import Any

from pynamodb.attributes import JSONAttribute, NumberAttribute, UnicodeAttribute
from pynamodb.exceptions import PynamoDBException
from pynamodb.models import Model

from shared.guard.model import Approval, ApprovalState
from shared.runtime.dynamo import StoreUnavailable, TransactItem, transact_put, transact_update


class _Row(Model):
    """One request; the table's name is given by `Approvals`."""

    class Meta:
        """Filled in per stage."""

        table_name = ""

    pk = UnicodeAttribute(hash_key=True)
    sk = UnicodeAttribute(range_key=True)
    operation = UnicodeAttribute()
    arguments = JSONAttribute()
    proposed_by = UnicodeAttribute()
    proposed_at_ms = NumberAttribute()
    state = UnicodeAttribute()
    decided_by = UnicodeAttribute(null=True)


class Approvals:
    """The requests of one stage."""

    def __init__(self, table: str) -> None:
        self._table = table
        meta = type("Meta", (), {"table_name": table})
        self._rows: type[_Row] = type("ApprovalRow", (_Row,), {"Meta": meta})

    def propose_item(self, approval: Approval) -> TransactItem:
        """A request, for the transaction that puts it on record; fails when one with this id stands already."""
        row = {
            "pk": f"approval#{approval.approval_id}",
            "sk": "-",
            "operation": approval.operation,
            "arguments": json.dumps(dict(approval.arguments)),
            "proposed_by": approval.proposed_by,
            "proposed_at_ms": approval.proposed_at_ms,
            "state": approval.state.value,
        }
        return transact_put(self._table, row)

    def find(self, approval_id: str) -> Approval | None:
        """A request as it stands now. Raises StoreUnavailable."""
        try:
            row = self._rows.get(f"approval#{approval_id}", "-", consistent_read=True)
        except self._rows.DoesNotExist:
            return None
        except PynamoDBException as error:
            raise StoreUnavailable("approval: read") from error
        arguments: Mapping[str, Any] = row.arguments
        return Approval(
            approval_id,
            row.operation,
            arguments,
            row.proposed_by,
            int(row.proposed_at_ms),
            ApprovalState(row.state),
            row.decided_by or "",
        )

    def decide_item(self, approval: Approval, state: ApprovalState, decider: str) -> TransactItem:
        """A yes or no; fails when it was decided before, or when the decider proposed it."""
        return transact_update(
            self._table,
            f"approval#{approval.approval_id}",
            "-",
            "SET #state = :state, decided_by = :by",
            {":state": state.value, ":by": decider, ":open": ApprovalState.PROPOSED.value},
            condition="#state = :open AND proposed_by <> :by",
            names={"#state": "state"},
        )
