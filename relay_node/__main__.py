"""`python -m relay_node`: one relay, wired by hand from its settings."""

import asyncio
import contextlib
import logging
import secrets
import ssl
from typing import Final

import uvloop

from relay_node.drain import drain
from relay_node.mesh import MeshConnection
from relay_node.peers import PeerSocket
from relay_node.presence import PresenceWriter, follow_orders, sweep_for_ever
from relay_node.regions import RegionTable
from relay_node.registry import Hooks, Registry
from relay_node.rotation import RotationTeller
from relay_node.settings import RelaySettings
from shared.runtime import garbage
from shared.runtime.clock import now_ms
from shared.runtime.duties import Duties, told_to_stop
from shared.runtime.log import configure
from shared.runtime.private import serve_private
from shared.runtime.redis import AsyncRedis
from shared.runtime.settings import listen_address, load_or_exit
from shared.supply.ip_data import first_fetch, follow_bucket
from shared.supply.origin import OriginReader
from shared.supply.tokens import verify

SESSION_ID_BYTES: Final = 8
BROKEN: Final = 1


async def serve(settings: RelaySettings) -> None:
    """Run until SIGTERM or SIGINT, then drain."""
    loop = asyncio.get_running_loop()
    stopping = told_to_stop()
    redis = AsyncRedis(settings.redis_url, settings.redis_login())
    files = settings.asn_mmdb, settings.country_mmdb
    mirror = await first_fetch(settings.ip_data_bucket, *files)
    origins = OriginReader(*files, settings.asn_classes, late=mirror is not None)
    regions = RegionTable(redis, settings.regions())
    public_key = settings.jwt_public_key.get_secret_value()
    mesh_host, mesh_port = listen_address(settings.relay_mesh_listen)
    presence = PresenceWriter(redis, settings.relay_id, (mesh_host, mesh_port))
    teller = RotationTeller(redis)
    registry = Registry(
        Hooks(
            verify=lambda token: verify(token, public_key),
            origin=origins.lookup,
            now_ms=now_ms,
            arrived=presence.arrived,
            left=presence.left,
            redirect_for=lambda device: regions.elsewhere(device.origin.country, settings.relay_region),
            rotated=teller.rotated,
        )
    )
    presence.revoke = registry.revoke
    token = settings.mesh_token.get_secret_value()
    peer_host, peer_port = listen_address(settings.relay_peer_listen)
    private_host, private_port = listen_address(settings.relay_private_listen)
    peers = await loop.create_server(lambda: PeerSocket(registry), peer_host, peer_port, ssl=_tls(settings))
    mesh = await loop.create_server(
        lambda: MeshConnection(registry, token, lambda: secrets.token_hex(SESSION_ID_BYTES)),
        mesh_host,
        mesh_port,
    )
    private = await serve_private(private_host, private_port, lambda: presence.fault)
    duties = Duties(stopping)
    duties.start(
        presence.run(),
        teller.run(),
        presence.beat_for_ever(registry),
        follow_orders(redis, registry, presence, settings.relay_id),
        sweep_for_ever(registry, presence),
        regions.follow(),
        follow_bucket(mirror),
    )
    garbage.settle()
    logging.getLogger("psx.relay").info("relay ready", extra={"relay": settings.relay_id})
    await stopping.wait()
    peers.close()
    await drain(registry, presence, settings.relay_drain_max_s)
    mesh.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(presence.drain(), 1.0)
    await duties.end()
    private.close()
    await redis.close()
    origins.close()
    if duties.broken:
        raise SystemExit(BROKEN)


def _tls(settings: RelaySettings) -> ssl.SSLContext | None:
    """TLS of the peers' listener, unless a load balancer in front ends it."""
    if settings.relay_tls_cert is None or settings.relay_tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.relay_tls_cert, settings.relay_tls_key)
    return context


if __name__ == "__main__":
    configure("relay")
    uvloop.run(serve(load_or_exit(RelaySettings)))
