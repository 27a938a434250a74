"""`python -m tests.support.killed`: runs the x402 function's handler in a process that is killed (SIGKILL) at a step.

One JSON line in: {"event", "at", "after", "env"}: with these settings, die before, or right after, write number `at` to a
store or to the chain. One JSON line out: {"killed", "status"}. Each run is a process of its own, forked before anything is
connected and before a setting is read.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from typing import Any, Final

import boto3
import eth_account.messages
import web3

from functions.x402.handler import handler
from shared.chain import settler
from shared.runtime.dynamo import DynamoRequest, SyncDynamo

WRITES: Final = frozenset({"put_item", "update_item", "delete_item", "transact_write_items"})
assert eth_account.messages
assert web3  # loaded once, before the forks


class _Steps:
    def __init__(self, at: int, after: bool) -> None:
        self._left = at
        self._after = after

    def around(self, work: Any, *args: Any) -> Any:
        """Do a write, and die at the one that was named."""
        mine, self._left = self._left == 0, self._left - 1
        if mine and not self._after:
            os.kill(os.getpid(), signal.SIGKILL)
        done = work(*args)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return done


def _run(order: dict[str, Any]) -> int:
    os.environ.update(order["env"])
    steps = _Steps(order["at"], order["after"])
    run, send = SyncDynamo.run, settler.EvmSettler.send

    def counted(self: SyncDynamo, request: DynamoRequest[Any]) -> Any:
        if request.operation not in WRITES:
            return run(self, request)
        return steps.around(run, self, request)

    SyncDynamo.run = counted  # type: ignore[method-assign]
    settler.EvmSettler.send = lambda self, raw: steps.around(send, self, raw)  # type: ignore[method-assign]
    asyncio.set_event_loop(asyncio.new_event_loop())
    answer: Any = handler(order["event"], None)
    return int(answer["statusCode"])


def main() -> None:
    """Until the input ends."""
    logging.disable(logging.INFO)
    # AWS's description of the service is read once, before the forks; nothing is connected, and no key is kept.
    boto3.client("dynamodb", region_name="eu-central-1", aws_access_key_id="-", aws_secret_access_key="-")
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, str(_run(json.loads(line))).encode())
            os._exit(0)
        os.close(writer)
        said = os.read(reader, 16).decode()
        os.close(reader)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        sys.stdout.write(json.dumps({"killed": killed, "status": int(said or 0)}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
