"""Looking up targets' names: whoever asks for names that nobody answers waits, and nobody else."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from gateway_node import resolve
from gateway_node.refusals import RefusedRequest
from gateway_node.resolve import LOOKUPS_PER_OWNER, Resolver, Target
from shared.kernel.codes import Refusal
from shared.wire.egress import EgressPolicy
from tests.support.dataplane import until

FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 0))]


class Names(list[str]):
    """Names that were looked up. Those below `slow.example` are answered when it is `over`."""

    over = threading.Event()

    def look_up(self, host: str, *_: Any, **__: Any) -> Any:
        self.append(host)
        if host.endswith("slow.example"):
            self.over.wait()
        return FOUND


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    """Of this test; it is over when the test ends."""
    asked = Names()
    asked.over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", asked.look_up)
    yield asked
    asked.over.set()


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


async def ask_in_vain(resolver: Resolver, patch: pytest.MonkeyPatch, owner: str, count: int) -> None:
    """Names of an owner's that nobody answers: whoever asked has given up when this returns."""
    with patch.context() as hurried:
        hurried.setattr(resolve, "RESOLVE_TIMEOUT_S", 0.1)
        names = (f"n{n}.{owner}.slow.example" for n in range(count))
        await asyncio.gather(*(resolver.resolve(name, 443, owner) for name in names))


@pytest.mark.usefixtures("asked")
async def test_owners_with_lookups_leave_the_last_threads_to_those_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver = Resolver(EgressPolicy(), {})
    owners = resolve.LOOKUP_THREADS // LOOKUPS_PER_OWNER
    for number in range(owners):
        await ask_in_vain(resolver, monkeypatch, f"o{number}", LOOKUPS_PER_OWNER)
    alone = owners - resolve.RARE_LOOKUPS // LOOKUPS_PER_OWNER
    assert len(resolver._looking) == resolve.RARE_LOOKUPS + alone
    assert isinstance(await resolver.resolve("shop.example", 443, "honest"), Target)


async def test_an_owner_of_silent_names_shares_less_when_threads_are_scarce(
    asked: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver(EgressPolicy(), {})
    await ask_in_vain(resolver, monkeypatch, "known", 1)
    with monkeypatch.context() as hurried:
        hurried.setattr(resolve, "RESOLVE_TIMEOUT_S", 0.05)  # the answer comes later than that
        asked.over.set()
        await until(lambda: not resolver._looking)
    asked.over = threading.Event()
    for number in range(resolve.SCARCE_LOOKUPS // LOOKUPS_PER_OWNER):
        await ask_in_vain(resolver, monkeypatch, f"o{number}", LOOKUPS_PER_OWNER)
    await ask_in_vain(resolver, monkeypatch, "known", LOOKUPS_PER_OWNER)
    assert len(resolver._looking) == resolve.SCARCE_LOOKUPS + 1
    await ask_in_vain(resolver, monkeypatch, "new", LOOKUPS_PER_OWNER)
    assert len(resolver._looking) == resolve.SCARCE_LOOKUPS + 1 + LOOKUPS_PER_OWNER
