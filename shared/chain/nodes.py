"""Several nodes of one chain: asked in order of health, until one answers or until enough of them say the same.

A node that failed is asked last for a while. Nothing here decides what a payment is.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from shared.chain.model import (
    Depth,
    Invalid,
    ReadFailed,
    Reading,
    Rejected,
    Several,
    Unknown,
    UnknownReason,
    Valid,
)
from shared.chain.rules import deepest, depth_for

N = TypeVar("N")
T = TypeVar("T")
R = TypeVar("R", bound=Reading)
SHUNNED_S: Final = 30.0


class Nodes(Generic[N]):
    """Nodes and how they did lately, for the life of one process."""

    def __init__(self, nodes: Sequence[N], clock: Callable[[], float] = time.monotonic) -> None:
        self._nodes = tuple(nodes)
        self._failed_at: dict[int, float] = {}
        self._clock = clock

    def __len__(self) -> int:
        return len(self._nodes)

    def _order(self) -> list[int]:
        """Healthy nodes as configured, then those that failed within `SHUNNED_S`, the longest ago first."""
        now = self._clock()
        shunned = {i: at for i, at in self._failed_at.items() if now - at < SHUNNED_S}
        return [i for i in range(len(self._nodes)) if i not in shunned] + sorted(
            shunned, key=shunned.__getitem__
        )

    def _answers(self, ask: Callable[[N], T]) -> Iterator[T | ReadFailed]:
        """What each node says, a failure of it as a value. A node's rejection is its answer and is raised."""
        for index in self._order():
            try:
                answer: T | ReadFailed = ask(self._nodes[index])
            except Rejected:
                raise
            except ReadFailed as error:
                answer = error
            except (KeyError, TypeError, ValueError, IndexError, AttributeError):
                answer = ReadFailed(UnknownReason.NODE_MALFORMED)
            except Exception as error:  # noqa: BLE001 - an HTTP library's failures are many, and all mean the same here
                answer = ReadFailed(UnknownReason.NODE_UNREACHABLE)
                answer.__cause__ = error
            if isinstance(answer, ReadFailed):
                self._failed_at[index] = self._clock()
            else:
                self._failed_at.pop(index, None)
            yield answer

    def first(self, ask: Callable[[N], T]) -> T:
        """The answer of the first node that gives one. Raises ReadFailed, Rejected."""
        failed = ReadFailed(UnknownReason.NODE_UNREACHABLE)
        for answer in self._answers(ask):
            if not isinstance(answer, ReadFailed):
                return answer
            failed = answer
        raise failed

    def agreed(self, ask: Callable[[N], T], quorum: int) -> T:
        """What this many nodes say alike. Raises ReadFailed, Rejected."""
        said: dict[T, int] = {}
        failed = ReadFailed(UnknownReason.NODE_UNREACHABLE)
        for answer in self._answers(ask):
            if isinstance(answer, ReadFailed):
                failed = answer
                continue
            said[answer] = said.get(answer, 0) + 1
            if said[answer] >= quorum:
                return answer
        raise ReadFailed(UnknownReason.NODES_DISAGREE) if said else failed

    def faults(self, chain: str, ask: Callable[[N], list[str]], quorum: int) -> list[str]:
        """What any node that answers says is wrong, and whether enough of them answer."""
        found: dict[str, None] = {}
        answered, failed = 0, UnknownReason.NODE_UNREACHABLE
        for answer in self._answers(ask):
            if isinstance(answer, ReadFailed):
                failed = answer.reason
                continue
            answered += 1
            found.update(dict.fromkeys(answer))
        if answered < quorum:
            found[f"{chain}: {failed.value}"] = None
        return list(found)

    def verdict(self, ask: Callable[[N], R], depths: Sequence[Depth]) -> R | Unknown:
        """The verdict that as many nodes give as its amount asks for; anything less is UNKNOWN.

        A verdict of INVALID is as final as money that is gone, so it needs the largest number that any amount does.
        """
        said: dict[R, int] = {}
        unknown: Unknown | None = None
        failed = Unknown(UnknownReason.NODE_UNREACHABLE)
        for answer in self._answers(ask):
            if isinstance(answer, ReadFailed):
                failed = Unknown(answer.reason)
            elif isinstance(answer, Unknown):
                unknown = answer
            else:
                said[answer] = said.get(answer, 0) + 1
                if said[answer] >= _needed(answer, depths):
                    return answer
        if said:
            return Unknown(UnknownReason.NODES_DISAGREE)
        return unknown or failed


def _needed(verdict: Valid | Several | Invalid, depths: Sequence[Depth]) -> int:
    if not isinstance(verdict, Invalid):
        return depth_for(verdict.amount_micro, depths).quorum
    return deepest(depths)
