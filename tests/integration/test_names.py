"""Looking up targets' names: whoever asks for names that nobody answers waits, and nobody else."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway_node import names as gateway_names
from gateway_node import resolve
from gateway_node.names import Names
from gateway_node.refusals import RefusedRequest
from gateway_node.resolve import LOOKUPS_PER_OWNER, Resolver, Target
from shared.kernel.codes import Refusal
from shared.wire.egress import EgressPolicy
from tests.conformance import resolver as scripted


class Answers(list[str]):
    """Names that were looked up. Those below `slow.example` are never answered."""

    async def addresses(self, host: str) -> list[str]:
        self.append(host)
        if host.endswith("slow.example"):
            await asyncio.Event().wait()
        return ["8.8.8.8"]


class NameServer(scripted.Resolver):
    """One whose answers are scripted, on any port. It is silent about names below `slow.example`."""

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if b"\4slow\7example" not in data:
            super().datagram_received(data, addr)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[NameServer]:
    """It knows `both.example`."""
    server = NameServer()
    server.names["both.example"] = [["2606:4700::1", "8.8.8.8", "1.1.1.1"]]
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: server, local_addr=("127.0.0.1", 0)
    )
    server.address = "{}:{}".format(*transport.get_extra_info("sockname"))
    yield server
    server.stop()


@pytest_asyncio.fixture
async def names(server: NameServer) -> AsyncIterator[Names]:
    """What asks it."""
    names = Names([server.address])
    yield names
    await names.close()


async def test_names_that_nobody_answers_hold_up_their_owner_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "RESOLVE_TIMEOUT_S", 0.2)
    asked = Answers()
    resolver = Resolver(EgressPolicy(), {}, asked.addresses)
    slow = [f"n{n}.slow.example" for n in range(100)]
    held = [asyncio.create_task(resolver.resolve(name, 443, "hostile")) for name in slow]
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


async def test_a_name_that_many_ask_for_is_looked_up_once() -> None:
    asked = Answers()
    resolver = Resolver(EgressPolicy(), {}, asked.addresses)
    found = await asyncio.gather(*(resolver.resolve("shop.example", 443, f"o{n % 3}") for n in range(60)))
    assert {target.address for target in found if isinstance(target, Target)} == {"8.8.8.8"}
    assert asked == ["shop.example"]


async def test_three_hundred_keys_with_silent_names_keep_nobody_else_from_an_answer(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver(EgressPolicy(), {}, names.addresses)
    with monkeypatch.context() as hurried:
        hurried.setattr(resolve, "RESOLVE_TIMEOUT_S", 0.1)
        asks = (resolver.resolve(f"n{n}.slow.example", 443, f"o{n % 300}") for n in range(2400))
        refused = await asyncio.gather(*asks)
    assert all(isinstance(refusal, RefusedRequest) for refusal in refused)
    assert len(resolver._looking) >= resolve.SCARCE_LOOKUPS, "they are still under way"
    found = await resolver.resolve("both.example", 443, "honest")
    assert found == Target("both.example", "8.8.8.8", 443, ("1.1.1.1", "2606:4700::1"))


async def test_when_many_lookups_are_under_way_each_owner_begins_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolve, "RESOLVE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(resolve, "LOOKUPS_MAX", resolve.SCARCE_LOOKUPS + 2)
    resolver = Resolver(EgressPolicy(), {}, Answers().addresses)

    async def ask_in_vain(owner: str) -> None:
        slow = (f"n{n}.{owner}.slow.example" for n in range(LOOKUPS_PER_OWNER))
        await asyncio.gather(*(resolver.resolve(name, 443, owner) for name in slow))

    many = resolve.SCARCE_LOOKUPS // LOOKUPS_PER_OWNER
    await asyncio.gather(*(ask_in_vain(f"o{number}") for number in range(many)))
    assert len(resolver._looking) == resolve.SCARCE_LOOKUPS
    await ask_in_vain("one more")
    assert len(resolver._looking) == resolve.SCARCE_LOOKUPS + 1
    await asyncio.gather(ask_in_vain("another"), ask_in_vain("too many"))
    assert len(resolver._looking) == resolve.LOOKUPS_MAX
    assert isinstance(await resolver.resolve("shop.example", 443, "honest"), RefusedRequest)


@pytest.mark.parametrize(
    "name",
    ["unknown.example", "a..example", "x" * 64 + ".example", "\N{CAT FACE}" * 64 + ".example"],
)
async def test_what_is_no_name_of_anything_has_no_address(names: Names, name: str) -> None:
    assert await names.addresses(name) == []


async def test_a_name_that_nobody_answers_is_over_for_its_owner_after_the_bound(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_names, "FIRST_TRY_S", 60.0)
    monkeypatch.setattr(gateway_names, "LOOKUP_MAX_S", 0.2)
    async with asyncio.timeout(20):
        assert await names.addresses("a.slow.example") == []


async def test_a_resolver_is_renewed_and_the_old_one_answers_whoever_waits_for_it(
    server: NameServer, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_names, "RENEWED_AFTER_S", 0.0)
    monkeypatch.setattr(gateway_names, "LOOKUP_MAX_S", 2.0)
    for n in range(20):
        server.names[f"n{n}.example"] = [["8.8.8.8"]]
    found = await asyncio.gather(*(names.addresses(f"n{n}.example") for n in range(20)))
    assert found == [["8.8.8.8"]] * 20
    assert len(names._ending) == 19
    async with asyncio.timeout(20):
        while names._ending or names._closing:
            await asyncio.sleep(0.05)
    assert await names.addresses("both.example") == ["8.8.8.8", "1.1.1.1", "2606:4700::1"]


@pytest.mark.parametrize(("bound", "least"), [("KEPT_MAX", 2), ("KEPT_MAX_S", 0.05)])
async def test_an_answer_is_not_kept_for_its_time_to_live(
    server: NameServer, names: Names, monkeypatch: pytest.MonkeyPatch, bound: str, least: float
) -> None:
    """Nobody bounds how many answers would be."""
    server.ttl_s = 3600
    server.names["moves.example"] = [["8.8.8.8"], ["1.1.1.1"]]
    monkeypatch.setattr(gateway_names, bound, least)
    assert await names.addresses("moves.example") == ["8.8.8.8"]
    async with asyncio.timeout(5):
        while await names.addresses("moves.example") == ["8.8.8.8"]:
            await asyncio.sleep(0.02)
    assert await names.addresses("moves.example") == ["1.1.1.1"]


async def test_of_many_addresses_of_a_name_some_are_kept(server: NameServer, names: Names) -> None:
    server.names["many.example"] = [[f"8.8.8.{n}" for n in range(1, 30)]]
    assert len(await names.addresses("many.example")) == gateway_names.ADDRESSES_MAX


@pytest.mark.parametrize("shorthand", ["127.1", "0177.0.0.1", "0x7f.1", "2130706433"])
async def test_shorthand_of_an_address_is_that_address(names: Names, shorthand: str) -> None:
    assert await names.addresses(shorthand) == ["127.0.0.1"]


async def test_a_customer_s_name_is_never_completed_to_one_of_our_own(
    server: NameServer, names: Names
) -> None:
    assert await names.addresses("db.corp") == []
    assert {name for name, _ in server.asked} == {"db.corp"}
