"""`python -m gateway_node`: one gateway, wired by hand from its settings."""

import asyncio
import contextlib
import logging
import signal
from typing import Any, Final

import uvloop

from gateway_node.auth import Authenticator
from gateway_node.dial import ExitDialer
from gateway_node.history import KeyHistory
from gateway_node.http_front import HttpFront
from gateway_node.journal import open_journal
from gateway_node.leases import Leases
from gateway_node.links import RelayLinks
from gateway_node.listen import listen, tls_context
from gateway_node.meter import MeterService
from gateway_node.pipeline import Pipeline
from gateway_node.resolve import Resolver
from gateway_node.sessions import SessionKeeper
from gateway_node.settings import KEY_BYTES, GatewaySettings
from gateway_node.socks_front import SocksFront
from gateway_node.workers import run_workers
from shared.access.model import Pak
from shared.access.rules import is_expired
from shared.access.secrets import SecretBox
from shared.kernel.ids import GatewayId, PakId
from shared.pool.live import REVOKE_PAK, read_presence
from shared.runtime import garbage
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import AsyncDynamo, StoreUnavailable
from shared.runtime.log import configure
from shared.runtime.private import serve_private
from shared.runtime.redis import AsyncRedis
from shared.runtime.settings import listen_address, load_or_exit, secret_bytes
from shared.wire.egress import EgressPolicy

DRAIN_POLL_S: Final = 0.05
TUNNEL_SWEEP_S: Final = 2.0
EXPIRY_SWEEP_S: Final = 0.5
KEY_SWEEP_S: Final = 30.0
RESUBSCRIBE_S: Final = 1.0

log = logging.getLogger("psx.gateway")


async def serve(settings: GatewaySettings) -> None:
    """Run until SIGTERM or SIGINT, then drain and flush."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    gateway_id = GatewayId(settings.gateway_id)
    box = SecretBox(
        secret_bytes(settings.sealing_key, KEY_BYTES), secret_bytes(settings.secret_pepper, KEY_BYTES)
    )
    redis = AsyncRedis(settings.redis_url)
    async with AsyncDynamo() as dynamo:
        journal = open_journal(gateway_id, settings.gateway_journal_dir)
        meter = MeterService(dynamo, redis, settings.table, gateway_id, now_ms, journal)
        await meter.start()
        house = settings.house_account
        history = KeyHistory(dynamo, redis, settings.table, gateway_id, now_ms, house)
        auth = Authenticator(
            dynamo, settings.table("access"), box, loop.time, now_ms, meter.met, house, history
        )
        leases = Leases(redis, gateway_id, now_ms)
        resolver = Resolver(EgressPolicy(lab_allow=settings.lab_endpoints()), settings.lab_names())
        mesh_token = settings.mesh_token.get_secret_value()
        links = RelayLinks(
            mesh_token, lambda device_id: redis.run(read_presence(device_id)), leases.path_lost
        )
        dialer = ExitDialer(mesh_token, box, links)
        sessions = SessionKeeper(redis, now_ms)
        pipeline = Pipeline(auth, resolver, leases, dialer, meter, now_ms, house, sessions)
        how: dict[str, Any] = {
            "tls": tls_context(settings.gateway_tls_cert, settings.gateway_tls_key),
            "proxied": settings.gateway_proxy_protocol,
            "shared_port": settings.gateway_workers > 1,
        }
        servers = [
            await listen(lambda: HttpFront(pipeline), *listen_address(settings.gateway_http_listen), **how),
            await listen(lambda: SocksFront(pipeline), *listen_address(settings.gateway_socks_listen), **how),
        ]
        private = await serve_private(*listen_address(settings.gateway_private_listen), lambda: meter.fault)
        tasks = [
            loop.create_task(meter.run()),
            loop.create_task(leases.run()),
            loop.create_task(leases.beat_for_ever()),
            loop.create_task(follow_revocations(redis, auth, meter)),
            loop.create_task(links.sweep_for_ever()),
            loop.create_task(sweep_tunnels(meter)),
            loop.create_task(sweep_keys(auth, meter, history)),
            loop.create_task(history.run()),
            loop.create_task(sessions.run()),
            loop.create_task(sessions.follow()),
        ]
        garbage.settle()
        log.info("gateway ready", extra={"gateway": gateway_id})
        await stopping.wait()
        for server in servers:
            server.close()
        await _drain(meter, settings.gateway_drain_max_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        links.close()
        await meter.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(leases.drain(), 2.0)
        private.close()
    await redis.close()


async def _drain(meter: MeterService, max_s: float) -> None:
    """Let open tunnels finish, up to a bound, then cut them."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + max_s
    while meter.all_tunnels() and loop.time() < deadline_s:  # noqa: ASYNC110 - once, at the end
        await asyncio.sleep(DRAIN_POLL_S)
    for tunnel in meter.all_tunnels():
        tunnel.cut()
    await asyncio.sleep(DRAIN_POLL_S)


async def sweep_tunnels(meter: MeterService) -> None:
    """End tunnels that have been silent for too long."""
    while True:
        await asyncio.sleep(TUNNEL_SWEEP_S)
        for tunnel in meter.all_tunnels():
            tunnel.sweep(TUNNEL_SWEEP_S)


async def sweep_keys(auth: Authenticator, meter: MeterService, history: KeyHistory | None = None) -> None:
    """Cut what has expired, and read open keys again now and then: the net under pushed revocations."""
    loop = asyncio.get_running_loop()
    read_s = loop.time()
    while True:
        await asyncio.sleep(EXPIRY_SWEEP_S)
        now = now_ms()
        for tunnel in meter.all_tunnels():
            if is_expired(tunnel.pak, now):
                if history is not None:
                    history.expired(tunnel.pak)
                tunnel.cut()
        if loop.time() - read_s >= KEY_SWEEP_S:
            read_s = loop.time()
            for pak_id in {tunnel.pak.pak_id for tunnel in meter.all_tunnels()}:
                with contextlib.suppress(StoreUnavailable):  # nothing is known to have changed: go on
                    _apply(meter, pak_id, await auth.read(pak_id))


async def follow_revocations(redis: AsyncRedis, auth: Authenticator, meter: MeterService) -> None:
    """Hear of changed keys and close what may not go on; sweep all known keys after a lost subscription."""
    while True:
        try:
            async for channel, text in redis.messages(REVOKE_PAK):
                for pak_id in [PakId(text)] if channel else sorted(auth.known()):
                    await _recheck(auth, meter, pak_id)
        except StoreUnavailable as error:
            log.warning("revocations not heard", extra={"reason": str(error)})
        await asyncio.sleep(RESUBSCRIBE_S)


async def _recheck(auth: Authenticator, meter: MeterService, pak_id: PakId) -> None:
    try:
        pak = await auth.recheck(pak_id)
    except StoreUnavailable:
        pak = None  # it changed, and nobody knows how: cutting is the safe side
    _apply(meter, pak_id, pak)


def _apply(meter: MeterService, pak_id: PakId, pak: Pak | None) -> None:
    for tunnel in meter.open_tunnels(pak_id):
        if pak is None or tunnel.pak.secret_hash != pak.secret_hash:
            tunnel.cut()
        else:
            tunnel.pak = pak


if __name__ == "__main__":
    configure("gateway")
    run_workers(load_or_exit(GatewaySettings), lambda settings: uvloop.run(serve(settings)))
