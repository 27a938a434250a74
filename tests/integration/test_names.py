"""Looking up targets' names: whoever asks for names that nobody answers waits, and nobody else."""

import asyncio
import socket
import threading
from typing import Any

import pytest

from gateway_node import resolve
from gateway_node.refusals import RefusedRequest
from gateway_node.resolve import LOOKUPS_PER_OWNER, Resolver, Target
from shared.kernel.codes import Refusal
from shared.wire.egress import EgressPolicy

FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 0))]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Names that were looked up. Those below `slow.example` are answered when the test ends."""
    asked: list[str] = []
    over = threading.Event()

    def look_up(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        if host.endswith("slow.example"):
            over.wait()
        return FOUND

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield asked
    over.set()


async def test_names_that_nobody_answers_hold_up_their_owner_alone(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "RESOLVE_TIMEOUT_S", 0.2)
    resolver = Resolver(EgressPolicy(), {})
    names = [f"n{n}.slow.example" for n in range(100)]
    held = [asyncio.create_task(resolver.resolve(name, 443, "hostile")) for name in names]
    refused = await asyncio.gather(*held)
    assert len(asked) == LOOKUPS_PER_OWNER
    for refusal in refused:
        assert isinstance(refusal, RefusedRequest)
        assert refusal.code is Refusal.TARGET_DNS
        assert "no name server" in refusal.message
    assert isinstance(await resolver.resolve("shop.example", 443, "hostile"), RefusedRequest), (
        "its turns are taken"
    )
    found = await resolver.resolve("shop.example", 443, "honest")
    assert found == Target("shop.example", "8.8.8.8", 443)
    assert await resolver.resolve("shop.example", 443, "hostile") == found, "what is known costs no turn"


async def test_a_name_that_many_ask_for_is_looked_up_once(asked: list[str]) -> None:
    resolver = Resolver(EgressPolicy(), {})
    found = await asyncio.gather(*(resolver.resolve("shop.example", 443, f"o{n % 3}") for n in range(60)))
    assert {target.address for target in found if isinstance(target, Target)} == {"8.8.8.8"}
    assert asked == ["shop.example"]
