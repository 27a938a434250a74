"""The prober on the real data plane: two places, targets that go away, exits that break under customers, deadlines."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pytest
import pytest_asyncio
from psx_peer.tunnels import Dialer, DirectDialer

from gateway_node.prober import service
from gateway_node.prober.service import Parts, Prober
from gateway_node.prober.target import TargetService
from local import lab
from shared.access.secrets import SecretBox
from shared.grading import table as grades
from shared.grading.conduct import ELSEWHERE_MIN
from shared.grading.dialer import PATIENT, Trust
from shared.grading.listing import SEGMENTS, ListingReport, ListingRun
from shared.grading.live import ask_probe, conduct_key, conduct_mark, mark_changed, read_changed
from shared.grading.model import Grade, Target
from shared.guard.service import standing_incidents
from shared.guard.table import write_setting
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId, PakId
from shared.pool import live
from shared.pool.numbers import derive, run
from shared.pool.presence import read_presence
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis, command
from shared.supply import table as devices
from shared.supply.model import Consent, Device, Kind, Origin
from shared.upkeep.audit import knock
from shared.upkeep.customer import BODY_BYTES, Door, Fetched, fetch
from shared.wire.egress import EgressPolicy
from tests.support.dataplane import ACCOUNT, MESH_TOKEN, SECRET, Plane, echo
from tests.support.functions import PREFIX
from tests.support.lab import pem_keys
from tests.support.permissions import as_node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
PRIVATE, PUBLIC = pem_keys()
ASKING = "probers and targets know it"
LAB = Origin(Country("us"), IpType.MOBILE, 64601, "Lab")
ROUTED_NO_MORE_WITHIN_S = 10.0
LISTED_AGAIN_WITHIN_S = 120.0
RELAY_LOST_WITHIN_S = 5.0
REBUILT_WITHIN_S = 60.0


class Bed:
    """A plane with a prober, two targets and the listing run."""

    def __init__(self, plane: Plane, dynamo: SyncDynamo, redis: SyncRedis, tls: ssl.SSLContext) -> None:
        self.plane, self.dynamo, self.redis, self._tls = plane, dynamo, redis, tls
        self.targets: list[Target] = []
        self.servers: dict[str, list[asyncio.Server]] = {}
        self._probing: asyncio.Task[None] | None = None

    async def start_target(self, place: str, ports: tuple[int, int] = (0, 0)) -> None:
        answering = TargetService(place, PRIVATE, ASKING, lambda: int(time.time()))
        tls_server = await asyncio.start_server(answering.serve, "127.0.0.1", ports[0], ssl=self._tls)
        plain_server = await asyncio.start_server(answering.serve, "127.0.0.1", ports[1])
        self.servers[place] = [tls_server, plain_server]
        if ports == (0, 0):
            port, plain_port = (s.sockets[0].getsockname()[1] for s in self.servers[place])
            self.plane.allowed |= {("127.0.0.1", port), ("127.0.0.1", plain_port)}
            self.targets.append(Target(place, lab.TARGET_NAME, "127.0.0.1", port, plain_port))

    def start_prober(self, ca: Any) -> None:
        parts = Parts(
            dynamo=self.plane.dynamo,
            redis=self.plane.redis,
            table=lambda name: PREFIX + name,
            box=SecretBox(bytes(32), bytes(32)),
            mesh_token=MESH_TOKEN,
            origin=lambda address: LAB,
            targets=self.targets,
            trust=Trust(ssl.create_default_context(cafile=str(ca)), PUBLIC, ASKING),
            concurrency=16,
            now_ms=now_ms,
        )
        with as_node("gateway", "prober"):
            self._probing = asyncio.get_running_loop().create_task(Prober(parts).run())

    async def stop_prober(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def enrol(self, name: str, dialer: Dialer | None = None) -> None:
        """A device with a row, and its peer, that is not on sale yet."""
        consent = Consent("2026-11", "sdk", 1)
        row = Device(
            DeviceId(name), AccountId("psx_owner"), name, Kind.AGENT, LAB, "lab", "eu", 1, consent=consent
        )
        await asyncio.to_thread(self.dynamo.run, devices.create(PREFIX + "devices", row))
        await self.plane.add_peer(name, dialer=dialer)
        await self.plane.redis.run(live.unlist_endpoint(Pool.PEER, cast("Any", name)))
        await self.plane.redis.run(ask_probe(DeviceId(name)))

    async def list_now(self, *, sweep: bool = False) -> ListingReport:
        job = ListingRun(self.dynamo, self.redis, lambda name: PREFIX + name)
        return await asyncio.to_thread(lambda: job.run(now_ms(), sweep=sweep))

    async def grade(self, name: str) -> Grade:
        request = grades.get_grade(PREFIX + "grades", DeviceId(name))
        return await asyncio.to_thread(self.dynamo.run, request) or Grade(DeviceId(name))

    async def paused(self, name: str) -> bool:
        return bool(await self.plane.redis.run(command("EXISTS", f"{{peer}}:pause:{name}", parse=int)))

    def watch_routing(self, name: str) -> list[float]:
        """When customers are sent to a device, from now on."""
        times: list[float] = []
        leases: Any = self.plane.leases
        acquire = leases.acquire

        async def watched(*args: Any, **more: Any) -> Any:
            found = await acquire(*args, **more)
            if getattr(getattr(found, "endpoint", None), "endpoint_id", "") == name:
                times.append(time.monotonic())
            return found

        leases.acquire = watched
        return times

    async def swap_dialer(self, name: str, dialer: Any) -> Any:
        """Give a peer another way to reach targets: new sockets use it, and old ones end. Answers what it had."""
        peer = next(p for p, _ in self.plane.peers if p._options.name == name)
        before, peer._dialer = peer._dialer, dialer
        old = self.plane.sockets_of(name)
        for socket in old:
            cast("asyncio.Transport", socket._transport).abort()

        async def renewed() -> bool:
            now = self.plane.sockets_of(name)
            return len(now) == len(old) and not set(now) & set(old)

        await until(renewed, 10)
        return before

    async def listed(self, name: str) -> bool:
        await self.list_now()
        return (await self.grade(name)).listed


@pytest_asyncio.fixture
async def bed(
    plane: Plane, dynoxide: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles
) -> AsyncIterator[Bed]:
    dynoxide.run(
        write_setting(PREFIX + "guard", "grading", {"retry_s": 1, "failing_s": 1, "interval_s": 30}, 1)
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(lab_files.target_cert)
    redis = SyncRedis(valkey_url)
    made = Bed(plane, dynoxide, redis, tls)
    for place in ("eu", "us"):
        await made.start_target(place)
    made.start_prober(lab_files.ca)
    yield made
    await made.stop_prober()
    for servers in made.servers.values():
        for server in servers:
            server.close()
    redis.close()


async def until(look: Callable[[], Awaitable[object]], within_s: float) -> float:
    """Seconds until something is so."""
    began = time.monotonic()
    while not await look():
        assert time.monotonic() - began < within_s, f"not within {within_s} s"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def test_an_exit_is_listed_when_it_was_seen_from_two_places(bed: Bed) -> None:
    await bed.enrol("p1")
    await until(lambda: bed.listed("p1"), 20)
    grade = await bed.grade("p1")
    assert grade.vantages == ("eu", "us")
    assert grade.latest is not None
    assert (grade.latest.exit_country, grade.latest.exit_ip_type) == ("us", IpType.MOBILE)
    assert grade.tier.value in {"fast", "medium"}
    assert grade.plain_ms > 0


async def test_a_target_that_is_away_costs_no_exit_its_place_and_opens_an_incident(bed: Bed) -> None:
    await bed.enrol("p1")
    await until(lambda: bed.listed("p1"), 20)
    for servers in bed.servers.values():
        for server in servers:
            server.close()

    async def incidents() -> list[str]:
        rows = await asyncio.to_thread(standing_incidents, bed.dynamo, PREFIX + "guard")
        return [i.kind for i in rows]

    await bed.plane.redis.run(ask_probe(DeviceId("p1"), urgent=True))
    await until(incidents, 10)
    assert set(await incidents()) == {"probe_target_down"}
    grade = await bed.grade("p1")
    assert (grade.failures, grade.listed) == (0, True)
    for target in bed.targets:
        await bed.start_target(target.place, (target.port, target.plain_port))
    port = await bed.plane.target(echo)
    reader, writer = await bed.plane.tunnel(port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()


async def hangs(side: asyncio.Protocol, host: str, port: int) -> asyncio.Transport:
    """A dialer of a device whose uplink swallows everything."""
    await asyncio.Event().wait()
    raise AssertionError


async def refuses(side: asyncio.Protocol, host: str, port: int) -> asyncio.Transport:
    """A dialer of a device that reaches nothing."""
    raise OSError(101, "network unreachable")


@pytest.mark.parametrize("broken", [hangs, refuses])
async def test_nobody_is_routed_to_a_broken_exit_soon_after_its_first_customer_and_it_comes_back(
    bed: Bed, broken: Any
) -> None:
    """Prints both times; the deadlines are the product's."""
    for name in ("good", "bad"):
        await bed.enrol(name)
    for name in ("good", "bad"):
        await until(lambda name=name: bed.listed(name), 20)  # type: ignore[misc]
    port = await bed.plane.target(echo)
    routed = bed.watch_routing("bad")
    works = await bed.swap_dialer("bad", broken)
    async with asyncio.TaskGroup() as customers:

        async def come() -> None:
            while not await bed.paused("bad"):
                customers.create_task(_customer(bed, port))
                await asyncio.sleep(0.2)

        await asyncio.wait_for(come(), 2 * ROUTED_NO_MORE_WITHIN_S)
    for _ in range(5):
        assert await asyncio.wait_for(_customer(bed, port), 5)
    out_s = routed[-1] - routed[0]
    assert out_s < ROUTED_NO_MORE_WITHIN_S
    await bed.swap_dialer("bad", works)

    async def back() -> bool:
        return await bed.listed("bad") and not await bed.paused("bad")

    back_s = await until(back, LISTED_AGAIN_WITHIN_S)
    print(
        f"{broken.__name__}: {len(routed)} customers in {out_s:.1f} s, then none; back after {back_s:.1f} s"
    )


async def _customer(bed: Bed, port: int) -> bool:
    _, writer, head = await bed.plane.connect(port)
    writer.close()
    return head.startswith("HTTP/1.1 200 ")


async def test_an_exit_that_serves_probes_and_drops_customers_goes_off_sale_on_their_word(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All over real sockets: the prober finds it well all the time, and its customers are served by another exit."""
    monkeypatch.setattr(service, "URGENT", PATIENT)  # no probe fails because this machine is slow
    plane = bed.plane
    await bed.enrol("good")
    await until(lambda: bed.listed("good"), 20)
    box, targets = SecretBox(bytes(32), bytes(32)), [await plane.target(echo) for _ in range(3)]
    customers = [Customer(AccountId(f"psx_c{n}"), f"pak_{n:024x}") for n in range(6)]
    for number, customer in enumerate(customers):
        await plane.mint(box, PakId(f"c{number}"), customer.secret, customer.account)
        for _ in range(ELSEWHERE_MIN):
            assert await customer.asks(plane, targets[0]) == b"hello"
    await bed.enrol("liar", await liars_dialer(bed))
    await until(lambda: bed.listed("liar"), 20)
    await plane.redis.run(live.unlist_endpoint(Pool.PEER, EndpointId("good")))
    for customer in customers:
        for turn in range(2):
            target = targets[(customers.index(customer) + turn) % 3]
            await until(partial(customer.is_dropped, plane, target), 30)
    await plane.leases.tell_fared()
    assert (await bed.list_now()).barred == [], "a probe has its chance first"
    grade = await bed.grade("liar")
    assert (grade.listed, grade.failures) == (True, 0)
    bed.redis.run(command("HSET", conduct_key(DeviceId("liar")), "accused", 1, parse=int))  # 15 s ago
    bed.redis.run(mark_changed([conduct_mark(DeviceId("liar"))]))
    assert (await bed.list_now(sweep=True)).barred == ["liar"]
    grade = await bed.grade("liar")
    assert (grade.listed, grade.reason, grade.failures) == (False, "lets_customers_down", 0)
    for customer in customers:
        assert await customer.asks(plane, targets[0]) == b"hello", "all go to the other one"


@dataclass(frozen=True)
class Customer:
    """Somebody with a key, who is sent to any exit."""

    account: AccountId
    secret: str

    async def asks(self, plane: Plane, port: int) -> bytes | None:
        """What a target answers; None when there was no exit."""
        username = f"{self.account}-peer-us"
        reader, writer, head = await plane.connect(port, username=username, secret=self.secret)
        try:
            if not head.startswith("HTTP/1.1 200 "):
                return None
            writer.write(b"hello")
            return await asyncio.wait_for(reader.read(5), 20)
        finally:
            writer.close()

    async def is_dropped(self, plane: Plane, port: int) -> bool:
        """Whether the exit took the tunnel and served nothing; False while it is kept from customers."""
        return await self.asks(plane, port) == b""


async def liars_dialer(bed: Bed) -> Dialer:
    """Of a peer that serves probe targets alone: all else is accepted, and closed at the first bytes."""

    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    nowhere = await bed.plane.target(drop)
    probes = {port for target in bed.targets for port in (target.port, target.plain_port)}

    works = DirectDialer(EgressPolicy(lab_allow=frozenset(bed.plane.allowed)))

    async def dial(side: asyncio.Protocol, host: str, port: int) -> asyncio.Transport:
        return await works(side, host, port if port in probes else nowhere)

    return dial


async def test_a_lost_relay_takes_its_devices_along_and_they_come_back_elsewhere(bed: Bed) -> None:
    second = await bed.plane.start_relay("relay-b")
    first = bed.plane.relays[0]
    await bed.plane.add_peer("p1", first)
    await bed.plane.add_peer("p2", first, second)
    await first.kill()

    async def gone() -> bool:
        return await bed.plane.redis.run(read_presence(DeviceId("p1"))) is None

    assert await until(gone, RELAY_LOST_WITHIN_S) < RELAY_LOST_WITHIN_S
    await bed.plane.present("p2", second)
    _, writer, head = await bed.plane.connect(await bed.plane.target(echo))
    assert head.startswith("HTTP/1.1 200 ")
    writer.close()


async def test_a_redis_that_lost_everything_is_told_again_by_relays_and_the_listing_run(bed: Bed) -> None:
    await bed.enrol("p1")
    await until(lambda: bed.listed("p1"), 20)
    await bed.list_now(sweep=True)
    bed.redis.run(command("FLUSHALL", parse=bool))
    began = time.monotonic()
    await bed.plane.present("p1")
    report = await bed.list_now()
    assert (report.rebuilt, report.swept) == (1, SEGMENTS)
    assert run(bed.redis, derive()).online == {"mbl": {}, "peer": {"us": 1}}
    assert time.monotonic() - began < REBUILT_WITHIN_S
    assert bed.redis.run(read_changed(10)).keys() <= {"dev:p1"}


async def test_the_synthetic_customer_fetches_over_both_ports_and_tells_refusals_apart(
    bed: Bed, lab_files: lab.LabFiles
) -> None:
    bed.plane.names[lab.TARGET_NAME] = "127.0.0.1"
    await bed.enrol("p1")
    await until(lambda: bed.listed("p1"), 20)
    door = Door("gw", "127.0.0.1", bed.plane.http_port, bed.plane.socks_port)
    trust = ssl.create_default_context(cafile=str(lab_files.ca))

    async def fetched(username: str, secret: str, *, socks: bool, through: Door | None = door) -> Fetched:
        return await asyncio.to_thread(
            fetch, through, username, secret, bed.targets[0], trust, ASKING, socks=socks
        )

    for socks in (False, True):
        found = await fetched(f"{ACCOUNT}-peer-us", SECRET, socks=socks)
        assert (found.fault, found.exit_ip, found.body_bytes) == ("", "127.0.0.1", BODY_BYTES)
        denied = await fetched(f"{ACCOUNT}-peer-us", "pak_" + "0" * 24, socks=socks)
        assert denied.fault == ("socks_2" if socks else "refused_407")
    assert (await fetched(f"{ACCOUNT}-peer-de", SECRET, socks=False)).fault == "refused_502"
    assert (await fetched("", "", socks=False, through=None)).ok
    relay = bed.plane.relays[0]
    tls = ssl.create_default_context()
    assert (await asyncio.to_thread(knock, "relay-a", relay.url, tls)).ok
    await relay.kill()
    assert not (await asyncio.to_thread(knock, "relay-a", relay.url, tls)).ok
