"""`python -m gateway_node`: one gateway, wired by hand from its settings."""

import asyncio
import contextlib
import logging
from typing import Any, Final

import uvloop

from gateway_node.auth import Authenticator
from gateway_node.dial import ExitDialer
from gateway_node.domains import BlockedDomains
from gateway_node.history import KeyHistory
from gateway_node.http_front import HttpFront
from gateway_node.journal import open_journal
from gateway_node.leases import Leases
from gateway_node.links import RelayLinks
from gateway_node.listen import listen, tls_context
from gateway_node.meter import MeterService
from gateway_node.names import Names
from gateway_node.pipeline import Pipeline
from gateway_node.places import Places
from gateway_node.resolve import Resolver
from gateway_node.revocation import follow_revocations, sweep_expired, sweep_open_keys
from gateway_node.sessions import SessionKeeper
from gateway_node.settings import KEY_BYTES, GatewaySettings
from gateway_node.socks_front import SocksFront
from gateway_node.workers import run_workers
from shared.access.secrets import SecretBox
from shared.kernel.ids import GatewayId
from shared.pool.presence import read_presence
from shared.runtime import garbage
from shared.runtime.clock import now_ms
from shared.runtime.duties import Duties, told_to_stop
from shared.runtime.dynamo import AsyncDynamo, StoreUnavailable
from shared.runtime.log import configure
from shared.runtime.private import serve_private
from shared.runtime.redis import AsyncRedis
from shared.runtime.settings import listen_address, load_or_exit, secret_bytes
from shared.wire.egress import EgressPolicy

BROKEN: Final = 1
DRAIN_POLL_S: Final = 0.05
TUNNEL_SWEEP_S: Final = 2.0
GIVE_BACK_MAX_S: Final = 2.0

log = logging.getLogger("psx.gateway")


async def serve(settings: GatewaySettings) -> None:
    """Run until SIGTERM or SIGINT, then drain and flush."""
    loop = asyncio.get_running_loop()
    stopping = told_to_stop()
    gateway_id = GatewayId(settings.gateway_id)
    box = SecretBox(
        secret_bytes(settings.sealing_key, KEY_BYTES), secret_bytes(settings.secret_pepper, KEY_BYTES)
    )
    redis = AsyncRedis(settings.redis_url, settings.redis_login())
    async with AsyncDynamo() as dynamo:
        journal = open_journal(gateway_id, settings.gateway_journal_dir)
        meter = MeterService(dynamo, redis, settings.table, gateway_id, now_ms, journal)
        await meter.start()
        house = settings.house_account
        history = KeyHistory(dynamo, redis, settings.table, gateway_id, now_ms, house)
        table = settings.table("access")
        auth = Authenticator(dynamo, table, box, loop.time, now_ms, meter.met, house, history, redis)
        leases = Leases(redis, gateway_id, now_ms)
        domains = BlockedDomains(dynamo, settings.table("guard"), meter.all_tunnels)
        policy = EgressPolicy(lab_allow=settings.lab_endpoints())
        names = Names()
        resolver = Resolver(policy, settings.lab_names(), names.addresses, domains.covers)
        mesh_token = settings.mesh_token.get_secret_value()
        links = RelayLinks(
            mesh_token, lambda device_id: redis.run(read_presence(device_id)), leases.path_lost
        )
        dialer = ExitDialer(mesh_token, box, links)
        sessions = SessionKeeper(redis, now_ms)
        places = Places(redis, gateway_id)
        pipeline = Pipeline(auth, resolver, leases, dialer, meter, places, now_ms, house, sessions)
        how: dict[str, Any] = {
            "tls": tls_context(settings.gateway_tls_cert, settings.gateway_tls_key),
            "balancers": settings.balancers(),
            "shared_port": settings.gateway_workers > 1,
        }
        servers = [
            await listen(lambda: HttpFront(pipeline), *listen_address(settings.gateway_http_listen), **how),
            await listen(lambda: SocksFront(pipeline), *listen_address(settings.gateway_socks_listen), **how),
        ]
        private = await serve_private(*listen_address(settings.gateway_private_listen), lambda: meter.fault)
        duties = Duties(stopping)
        duties.start(
            meter.run(),
            leases.run(),
            leases.beat_for_ever(),
            follow_revocations(redis, auth, meter),
            links.sweep_for_ever(),
            sweep_tunnels(meter),
            sweep_expired(meter, history),
            sweep_open_keys(auth, meter),
            history.run(),
            sessions.run(),
            sessions.follow(),
            places.run(),
            domains.follow(),
        )
        garbage.settle()
        log.info("gateway ready", extra={"gateway": gateway_id})
        await stopping.wait()
        for server in servers:
            server.close()
        await _drain(pipeline, meter, links, settings.gateway_drain_max_s)
        await duties.end()
        links.close()
        await names.close()
        written = await meter.stop(settings.gateway_last_flush_max_s)
        with contextlib.suppress(TimeoutError, StoreUnavailable):
            async with asyncio.timeout(GIVE_BACK_MAX_S):
                await leases.drain()
                await places.renew()
        private.close()
    await redis.close()
    if duties.broken or not written:  # whoever takes this machine away has to know that its disk holds counts
        raise SystemExit(BROKEN)


async def _drain(pipeline: Pipeline, meter: MeterService, links: RelayLinks, max_s: float) -> None:
    """Let tunnels finish that are open or about to be, and what they sent arrive, up to a bound; then cut them."""
    loop = asyncio.get_running_loop()
    pipeline.drain()
    deadline_s = loop.time() + max_s
    while (pipeline.opening or meter.all_tunnels() or links.busy) and loop.time() < deadline_s:  # noqa: ASYNC110 - once
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


if __name__ == "__main__":
    configure("gateway")
    run_workers(load_or_exit(GatewaySettings), lambda settings: uvloop.run(serve(settings)))
