"""`python -m gateway_node.prober`: one prober, wired by hand from its settings."""

import asyncio
import logging
import ssl

import uvloop

from gateway_node.prober.service import Parts, Prober
from gateway_node.prober.settings import ProberSettings
from gateway_node.settings import KEY_BYTES
from shared.access.secrets import SecretBox
from shared.grading.dialer import Trust
from shared.runtime.clock import now_ms
from shared.runtime.duties import told_to_stop
from shared.runtime.dynamo import AsyncDynamo
from shared.runtime.log import configure
from shared.runtime.private import serve_private
from shared.runtime.redis import AsyncRedis
from shared.runtime.settings import listen_address, load_or_exit, secret_bytes
from shared.supply.ip_data import first_fetch, follow_bucket
from shared.supply.origin import OriginReader


async def serve(settings: ProberSettings) -> None:
    """Run until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stopping = told_to_stop()
    redis = AsyncRedis(settings.redis_url, settings.redis_login())
    files = settings.asn_mmdb, settings.country_mmdb
    mirror = await first_fetch(settings.ip_data_bucket, *files)
    following = loop.create_task(follow_bucket(mirror))
    origins = OriginReader(*files, settings.asn_classes, late=mirror is not None)
    tls = ssl.create_default_context(cafile=str(settings.probe_ca_file) if settings.probe_ca_file else None)
    async with AsyncDynamo() as dynamo:
        parts = Parts(
            dynamo=dynamo,
            redis=redis,
            table=settings.table,
            box=SecretBox(
                secret_bytes(settings.sealing_key, KEY_BYTES), secret_bytes(settings.secret_pepper, KEY_BYTES)
            ),
            mesh_token=settings.mesh_token.get_secret_value(),
            origin=origins.lookup,
            targets=settings.targets(),
            trust=Trust(tls, settings.probe_target_keys, settings.probe_asking_key.get_secret_value()),
            concurrency=settings.probe_concurrency,
            now_ms=now_ms,
        )
        prober = Prober(parts)
        probing = loop.create_task(prober.run())
        private = settings.probe_private_listen
        told = await serve_private(*listen_address(private), lambda: None) if private else None
        logging.getLogger("psx.prober").info("prober ready")
        probing.add_done_callback(lambda _: stopping.set())
        await stopping.wait()
        failed = probing.done()
        if told is not None:
            told.close()
        probing.cancel()
        following.cancel()
        ended, _ = await asyncio.gather(probing, following, return_exceptions=True)
    await redis.close()
    origins.close()
    if failed:  # what runs this starts it again, and sees that it failed
        raise RuntimeError("probing ended by itself") from (
            ended if isinstance(ended, BaseException) else None
        )


if __name__ == "__main__":
    configure("prober")
    uvloop.run(serve(load_or_exit(ProberSettings)))
