"""Settings and parts of the x402 function, made once per container."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pydantic import SecretStr, field_validator

from functions.sealing import KEY_BYTES, SealingSettings, envelope
from functions.x402.chains import GAS_KEY_BYTES, Chains
from shared.access.secrets import Seals
from shared.chain.model import Network
from shared.guard.service import LiveSettings
from shared.kernel.ids import AccountId
from shared.pool.leases import share_percent_of
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo
from shared.runtime.redis import SyncRedis
from shared.runtime.settings import load, secret_bytes
from shared.sale.answers import Place
from shared.sale.exact import ExactRail
from shared.sale.minting import Mint
from shared.sale.model import Rail
from shared.sale.rules import read_depths, types_on_sale
from shared.sale.service import Counter

TEST_KEY_BYTES: Final = GAS_KEY_BYTES
SOLANA_CAIP2: Final = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"


class SaleSettings(SealingSettings):
    """Environment of the x402 function (prefix PSX_)."""

    api_base_url: str
    gateway_host: str
    gateway_http_port: int
    gateway_socks_port: int
    quote_secret: SecretStr
    house_account: str
    evm_rpc_urls: str
    evm_chain_id: int = 8453
    evm_asset: str = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
    evm_recipient: str
    gas_key: SecretStr = SecretStr("")
    clock_error_ms: int = 0
    solana_rpc_urls: str
    solana_asset: str = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"
    solana_recipient: str
    solana_genesis: str = "5eykt4UsFv8P8NJdTREpY1vzqKqZKvdpKuc147dw2N9d"
    self_test_key: SecretStr = SecretStr("")
    customer_key: SecretStr = SecretStr("")
    echo_url: str = ""
    echo_ca: str = ""

    @field_validator("gas_key", "self_test_key", "customer_key")
    @classmethod
    def _wallet_key(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value():
            secret_bytes(value, GAS_KEY_BYTES)
        return value

    @field_validator("quote_secret")
    @classmethod
    def _quote_key(cls, value: SecretStr) -> SecretStr:
        secret_bytes(value, KEY_BYTES)
        return value


@dataclass(frozen=True)
class Wiring:
    """Everything that routes use."""

    settings: SaleSettings
    dynamo: SyncDynamo
    redis: SyncRedis
    live: LiveSettings
    counter: Counter
    chains: Chains
    rail_of: Callable[[str], Rail]
    place: Place

    @property
    def rails(self) -> tuple[Rail, ...]:
        """Where money is taken now."""
        return self.rail_of(Network.BASE), self.rail_of(Network.SOLANA)

    @property
    def box(self) -> Seals:
        """What seals secrets at rest."""
        return self.counter.mint.box


def wire(settings: SaleSettings, dynamo: SyncDynamo, redis: SyncRedis) -> Wiring:
    """Put the parts together."""
    live = LiveSettings(dynamo, settings.table("guard"), now_ms)
    ours = functools.partial(recipients, settings, live)
    rail_of = functools.partial(_rail, settings, ours)
    chains = Chains(settings, ours)
    counter = Counter(
        mint=Mint(
            dynamo,
            redis,
            settings.table,
            envelope(settings),
            AccountId(settings.house_account),
            now_ms,
            lambda: share_percent_of(live.get("leases")),
        ),
        redis=redis,
        quote_secret=secret_bytes(settings.quote_secret, KEY_BYTES),
        chain=lambda: chains,
        exact=ExactRail(
            dynamo,
            settings.table("sales"),
            chains.settler,
            now_ms,
            lambda: ours(Network.BASE),
            lambda: live.get("sale").get("exact") is True,
        ),
        exact_rail=lambda: rail_of(Network.BASE),
        depths=lambda network: read_depths(live.get("confirmations"), network),
        now_ms=now_ms,
        sells=lambda ip_type: ip_type in types_on_sale(live.get("peer_tiers")),
        api_base_url=settings.api_base_url,
        clock_error_ms=settings.clock_error_ms,
    )
    place = Place(
        settings.api_base_url, settings.gateway_host, settings.gateway_http_port, settings.gateway_socks_port
    )
    return Wiring(settings, dynamo, redis, live, counter, chains, rail_of, place)


def recipients(settings: SaleSettings, live: LiveSettings, network: str) -> tuple[str, ...]:
    """Our addresses on a network: the one that is offered, then those that still count as ours.

    Where money went until a change of the setting counts for as long as quotes promise it.
    """
    first = settings.evm_recipient if network == Network.BASE else settings.solana_recipient
    told = (address for value in live.versions("recipients") for address in value.get(network) or (first,))
    return tuple(dict.fromkeys(told))


def _rail(settings: SaleSettings, ours: Callable[[str], tuple[str, ...]], network: str) -> Rail:
    offered, s = ours(network)[0], settings
    if network == Network.BASE:
        return Rail("base", s.evm_chain_id, f"eip155:{s.evm_chain_id}", s.evm_asset, offered)
    return Rail("solana", None, SOLANA_CAIP2, s.solana_asset, offered)


@functools.cache
def wiring() -> Wiring:
    """The wiring of this container."""
    settings = load(SaleSettings)
    return wire(settings, SyncDynamo(), SyncRedis(settings.redis_url, settings.redis_login()))
