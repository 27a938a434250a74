"""The controller of one node: read the others, apply, say what was applied, change the key when it is time.

A round reads the table, makes WireGuard what the rules say, and only then writes the heartbeat: what a node says that it
has taken up stands in its configuration. Between rounds it looks for announced keys that began to shake hands, because
from that moment on the other side answers to the new key only. When the table or `wg` fails, what runs goes on.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Final, Protocol

from infra.mesh import figures
from infra.mesh.config import KEEPALIVE_S, render
from infra.mesh.figures import Outcome
from infra.mesh.keys import KeyFolder, PrivateKey
from infra.mesh.model import Endpoint, Link, MeshKey, Node, Peer, Step
from infra.mesh.rules import (
    ROTATION_RETRY_S,
    awaited,
    candidates,
    forgettable,
    next_step,
    peers_of,
)
from infra.mesh.settings import MeshSettings
from infra.mesh.table import forget, publish, read_node, read_role, register
from infra.mesh.wireguard import WireGuardFailed, nudge
from shared.runtime.dynamo import AsyncDynamo, StoreUnavailable

ROTATING_POLL_S: Final = 2.0
POLL_JITTER: Final = 0.1
WATCH_S: Final = 0.25
NODES_MAX: Final = 2_000
FAULT_AFTER_S: Final = 60.0

log = logging.getLogger("psx.mesh")


class NodeRemoved(Exception):
    """An operator, or the node itself at its end, took it out of the mesh; it must not come back by itself."""


class NoAddress(Exception):
    """Every address that was tried is another node's; the message names the region."""


class Interface(Protocol):
    """WireGuard, or what stands for it in a test."""

    async def set_up(self, address: IPv4Address) -> None: ...

    async def apply(self, config: str) -> None: ...

    async def links(self) -> dict[MeshKey, Link]: ...


class Controller:
    """One node of the mesh."""

    def __init__(
        self,
        settings: MeshSettings,
        dynamo: AsyncDynamo,
        wireguard: Interface,
        now_ms: Callable[[], int],
        nudged: Callable[[Sequence[IPv4Address]], None] = nudge,
    ) -> None:
        self._settings = settings
        self._table = settings.table("mesh")
        self._dynamo = dynamo
        self._wireguard = wireguard
        self._now_ms = now_ms
        self._nudge = nudged
        self._keys = KeyFolder(settings.mesh_state_dir)
        self._key: PrivateKey = self._keys.own()
        self._nodes: tuple[Node, ...] = ()
        self._peers: tuple[Peer, ...] = ()
        self._applied = ""
        self._announced_ms: int | None = None
        self._abandoned_ms: int | None = None
        self._good_ms = now_ms()
        self._live = 0
        self._rotate_asked = False
        self._stopped = False
        self._wake = asyncio.Event()
        self.me: Node

    def stop(self) -> None:
        """End `run` soon. Links stay as they are."""
        self._stopped = True
        self._wake.set()

    def rotate(self) -> None:
        """Change the key as soon as every peer can follow."""
        self._rotate_asked = True
        self._wake.set()

    async def start(self) -> None:
        """Take an address and set the interface up. Raises NodeRemoved, NoAddress, StoreUnavailable, WireGuardFailed."""
        self._keys.abandon()  # an announcement of an earlier life: it is made anew if it is still wanted
        self.me = await self._join()
        await self._wireguard.set_up(self.me.address)
        log.info("joined the mesh", extra={"node": self.me.node_id, "address": str(self.me.address)})

    async def _join(self) -> Node:
        """The own row as the table has it, made when there is none."""
        given = self._settings
        found = await self._dynamo.run(read_node(self._table, given.mesh_role, given.mesh_node_id))
        if found is not None and found.removed:
            raise NodeRemoved(given.mesh_node_id)
        if found is not None and found.address in given.network():
            return self._now(found)
        if found is not None:  # its region has another number now
            await self._dynamo.run(forget(self._table, found))
        for address in candidates(given.mesh_node_id, given.network()):
            made = self._now(
                Node(
                    given.mesh_node_id,
                    given.mesh_role,
                    given.mesh_region,
                    address,
                    Endpoint(given.mesh_endpoint),
                    None,
                    self._key.public,
                    None,
                    frozenset(),
                    0,
                )
            )
            conflict = await self._dynamo.run(register(self._table, made))
            if conflict is None:
                return made
            if 0 not in conflict.failed:
                break  # somebody else is this node already
        raise NoAddress(f"region {given.mesh_region} has no address for {given.mesh_node_id}")

    def _now(self, node: Node) -> Node:
        """The row with what holds at this moment."""
        inner = Endpoint(self._settings.mesh_inner_endpoint) if self._settings.mesh_inner_endpoint else None
        following = self._keys.following()
        return replace(
            node,
            region=self._settings.mesh_region,
            endpoint=Endpoint(self._settings.mesh_endpoint),
            inner_endpoint=inner,
            key=self._key.public,
            next_key=None if following is None else following.public,
            awaits=awaited(self._peers),
            heartbeat_ms=self._now_ms(),
        )

    async def run(self) -> None:
        """Rounds until told to stop. Raises NodeRemoved and NoAddress."""
        loop = asyncio.get_running_loop()
        while not self._stopped:
            self._wake.clear()
            await self.round()
            until_s = loop.time() + self._pace_s()
            while not self._wake.is_set() and (left_s := until_s - loop.time()) > 0:
                watching = bool(awaited(self._peers))
                try:
                    async with asyncio.timeout(min(left_s, WATCH_S) if watching else left_s):
                        await self._wake.wait()
                except TimeoutError:
                    if watching:
                        await self._watch()

    def _pace_s(self) -> float:
        """Until the next round: sooner while a key changes, and never in step with the other nodes."""
        rotating = self._announced_ms is not None or bool(awaited(self._peers))
        pace_s = self._settings.mesh_poll_s
        spread = random.uniform(1 - POLL_JITTER, 1 + POLL_JITTER)  # noqa: S311 - spreads load, no secret
        return (min(pace_s, ROTATING_POLL_S) if rotating else pace_s) * spread

    async def _watch(self) -> None:
        """Follow a peer that has switched its key, without asking the table."""
        try:
            await self.reconcile()
        except WireGuardFailed as error:
            log.warning("links not read", extra={"reason": str(error)})

    async def round(self) -> None:
        """One round. Raises NodeRemoved; whatever else fails is counted, told and tried again."""
        try:
            await self._read()
            changed = await self.reconcile()
            await self._speak()
            await self._rotate()
            await self._forget()
        except StoreUnavailable as error:
            figures.ROUNDS.labels(Outcome.STORE).inc()
            log.warning("table not reached", extra={"reason": str(error)})
            return
        except WireGuardFailed as error:
            figures.ROUNDS.labels(Outcome.WIREGUARD).inc()
            log.warning("not applied", extra={"reason": str(error)})
            return
        self._good_ms = self._now_ms()
        figures.LAST_GOOD.set(self._good_ms / 1000)
        figures.KEY_AGE.set(self._keys.age_s(self._good_ms / 1000))
        figures.ROUNDS.labels(Outcome.APPLIED if changed else Outcome.UNCHANGED).inc()

    def fault(self) -> str | None:
        """What `/ready` says: None when rounds succeed, and a link lives if there is any peer."""
        if self._now_ms() - self._good_ms > FAULT_AFTER_S * 1000:
            return "no round succeeded within a minute"
        if self._live == 0 and any(peer.address is not None for peer in self._peers):
            return "no link lives"
        return None

    # the steps of a round

    async def _read(self) -> None:
        """The nodes of the other role. They replace what was known only when all pages came."""
        found: list[Node] = []
        start = None
        while len(found) < NODES_MAX:
            page = await self._dynamo.run(read_role(self._table, self.me.role.opposite, start))
            good = [node for node in page.rows if node is not None]
            figures.BAD_ROWS.inc(len(page.rows) - len(good))
            found += good
            start = page.next_key
            if start is None:
                break
        self._nodes = tuple(found)

    async def reconcile(self) -> bool:
        """Make WireGuard what the rules say of what is known; answers whether anything had to change."""
        now = self._now_ms()
        links = await self._wireguard.links()
        peers = peers_of(self.me.region, self._nodes, links, now)
        config = render(self._key.reveal(), self._settings.listen_port(), peers)
        wanted = {(p.key, p.address) for p in peers}
        held = {(link.key, a) for link in links.values() for a in (link.addresses or {None})}
        changed = config != self._applied or wanted != held
        if changed:
            await self._wireguard.apply(config)
            self._tell(peers)
            self._applied = config
            self._peers = peers
        self._live = figures.show(peers, links, now)
        return changed

    def _tell(self, peers: tuple[Peer, ...]) -> None:
        before = {p.address for p in self._peers if p.address is not None}
        after = {p.address for p in peers if p.address is not None}
        added, removed = sorted(map(str, after - before)), sorted(map(str, before - after))
        facts = {"peers": len(after), "added": added, "removed": removed, "awaited": len(awaited(peers))}
        log.info("configuration applied", extra=facts)

    async def _speak(self) -> None:
        """Heartbeat, endpoints, keys, and what was taken up. A row that is gone is made again."""
        said = self._now(self.me)
        written = await self._dynamo.run(publish(self._table, said))
        if written is None:
            said = await self._join()
            if said.address != self.me.address:
                await self._wireguard.set_up(said.address)
                log.warning("address changed", extra={"address": str(said.address)})
        self.me = said

    async def _rotate(self) -> None:
        """One step towards a new key, if it is time."""
        now = self._now_ms()
        old = self._keys.age_s(now / 1000) > self._settings.mesh_key_max_age_s
        rested = self._abandoned_ms is None or now - self._abandoned_ms > ROTATION_RETRY_S * 1000
        links = await self._wireguard.links()
        step = next_step(
            self.me,
            self._nodes,
            links,
            now,
            wanted=self._rotate_asked or (old and rested),
            announced_ms=self._announced_ms,
        )
        match step:
            case Step.ANNOUNCE:
                await self._announce(now)
            case Step.SWITCH:
                await self._switch()
            case Step.ABANDON:
                self._keys.abandon()
                self._announced_ms, self._abandoned_ms = None, now
                log.warning("key change given up: a peer that lives did not take up the announced key")
                await self._speak()

    async def _announce(self, now: int) -> None:
        self._keys.prepare()
        self._announced_ms, self._rotate_asked = now, False
        log.info("key announced", extra={"waits_for": len(self._nodes)})
        await self._speak()

    async def _switch(self) -> None:
        """Change the key in use. Peers follow at the first handshake; the table says it for those that were away."""
        self._key = self._keys.switch()
        self._announced_ms = None
        await self.reconcile()
        self._nudge([peer.address for peer in self._peers if peer.address is not None])
        figures.SWITCHES.inc()
        log.info("key switched", extra={"public_key": self._key.public, "keepalive_s": KEEPALIVE_S})
        await self._speak()

    async def _forget(self) -> None:
        """Give up rows of nodes that have long been gone."""
        links = await self._wireguard.links()
        for node in forgettable(self._nodes, links, self._now_ms()):
            if await self._dynamo.run(forget(self._table, node)) is None:
                log.info("dead node forgotten", extra={"node": node.node_id, "address": str(node.address)})
