"""Requests for a human's yes, in DynamoDB by pynamodb: only Lambda touches these rows, never a node's loop.

Proposing and deciding are conditional writes: a request is decided once, and never by whoever proposed it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pynamodb.attributes import JSONAttribute, NumberAttribute, UnicodeAttribute
from pynamodb.exceptions import PutError, PynamoDBException, UpdateError
from pynamodb.models import Model

from shared.guard.model import Approval, ApprovalState
from shared.runtime.dynamo import StoreUnavailable

_CONFLICT = "ConditionalCheckFailedException"


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
        meta = type("Meta", (), {"table_name": table})
        self._rows: type[_Row] = type("ApprovalRow", (_Row,), {"Meta": meta})

    def propose(self, approval: Approval) -> bool:
        """Record a request; False when one with this id stands already. Raises StoreUnavailable."""
        row = self._rows(
            f"approval#{approval.approval_id}",
            "-",
            operation=approval.operation,
            arguments=dict(approval.arguments),
            proposed_by=approval.proposed_by,
            proposed_at_ms=approval.proposed_at_ms,
            state=approval.state.value,
        )
        try:
            row.save(condition=self._rows.pk.does_not_exist())
        except PutError as error:
            return _conflict(error)
        return True

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

    def decide(self, approval: Approval, state: ApprovalState, decider: str) -> Approval | None:
        """Approve or reject; None when it was decided before, or when the decider proposed it."""
        row = self._rows(f"approval#{approval.approval_id}", "-")
        is_open = self._rows.state == ApprovalState.PROPOSED.value
        try:
            row.update(
                actions=[self._rows.state.set(state.value), self._rows.decided_by.set(decider)],
                condition=is_open & (self._rows.proposed_by != decider),
            )
        except UpdateError as error:
            _conflict(error)
            return None
        return replace(approval, state=state, decided_by=decider)


def _conflict(error: PutError | UpdateError) -> bool:
    """False for a condition that did not hold; anything else is the store not answering."""
    if error.cause_response_code == _CONFLICT:
        return False
    raise StoreUnavailable("approval: write") from error
