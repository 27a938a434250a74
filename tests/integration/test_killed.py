"""A process that serves a payment is killed at each of its steps: the payment is served all the same, and once."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from eth_account import Account

from functions.x402.serve_owed import serve_owed
from local import lab
from local.api_gateway import http_event
from local.bootstrap import HOUSE, RESELLER
from local.evm import USDC, sign_authorization
from local.http_server import HttpRequest
from local.paths import ROOT
from shared.access.prepaid import get_prepaid
from shared.access.table import list_paks
from shared.guard.service import all_incidents
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo
from shared.sale import owed_table
from shared.sale.exact_table import LEASE_MS
from shared.sale.owed import LATE_MS
from tests.integration.test_attacks import DUE, QUERY, RECIPIENT, transfer
from tests.support.chain import Anvil, header
from tests.support.functions import PREFIX, Functions, Reply

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
STEPS_MAX = 40
TOPUP = "/v1/x402/manage/pool/topup"
BALANCE = "/v1/x402/balance?traffic=0.1"


class Shop(Functions):
    """The sale, and processes beside it that are killed while they serve."""

    def __init__(
        self,
        dynamo: SyncDynamo,
        redis_url: str,
        files: lab.LabFiles,
        anvil: Anvil,
        dynamo_url: str,
        processes: subprocess.Popen[str],
    ) -> None:
        gas = Account.create()
        super().__init__(dynamo, redis_url, files, anvil.url, gas.key.hex(), RECIPIENT)
        anvil.call("anvil_setBalance", gas.address, hex(10**18))
        self.anvil = anvil
        self.open(exact=True)
        # What a killed process had taken on is free again after five seconds; here they are over at once.
        object.__setattr__(self.sale_wiring.counter.exact, "now_ms", lambda: now_ms() + LEASE_MS + 1)
        for query, method, headers in ((QUERY, "GET", {}), (BALANCE, "POST", self.reseller)):
            assert self.call(query, method, headers=headers).status == 402
        self._processes = processes
        self._env = self._environment(redis_url, dynamo_url)

    @property
    def reseller(self) -> dict[str, str]:
        return {"x-api-key": self.keys.reseller}

    def _environment(self, redis_url: str, dynamo_url: str) -> dict[str, str]:
        s = self.sale_wiring.settings
        shown = {name: getattr(s, name) for name in type(s).model_fields}
        texts = {
            f"PSX_{name.upper()}": str(v.get_secret_value() if hasattr(v, "get_secret_value") else v)
            for name, v in shown.items()
        }
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        where = {"AWS_DEFAULT_REGION": "eu-central-1", "AWS_ENDPOINT_URL_DYNAMODB": dynamo_url}
        return {**texts, **keys, **where, "PSX_STAGE": "local", "PSX_REDIS_URL": redis_url}

    def killed(self, request: "Ask", at: int, after: bool) -> dict[str, Any]:
        """One request in a process that dies at a step; whether it lived long enough to."""
        assert self._processes.stdin is not None
        assert self._processes.stdout is not None
        headers = {"host": "api.example", "content-type": "application/json", **request.headers}
        raw = json.dumps(request.body).encode()
        event = http_event(
            HttpRequest(request.method, request.target, tuple(headers.items()), raw, "127.20.0.1")
        )
        order = {"event": event, "at": at, "after": after, "env": self._env}
        self._processes.stdin.write(json.dumps(order) + "\n")
        self._processes.stdin.flush()
        found: dict[str, Any] = json.loads(self._processes.stdout.readline())
        return found

    def ask(self, request: "Ask") -> Reply:
        return self.call(request.target, request.method, request.body, request.headers)

    def late(self) -> dict[str, Any]:
        """The job, a minute later; twice, because two instances may run it."""
        clock = self.sale_wiring.counter
        object.__setattr__(clock, "now_ms", lambda: now_ms() + LATE_MS)
        first = serve_owed(self.sale_wiring)
        serve_owed(self.sale_wiring)
        object.__setattr__(clock, "now_ms", now_ms)
        return first

    def minted(self) -> int:
        return len(self.dynamo.run(list_paks(f"{PREFIX}access", HOUSE, 1000)).rows)

    def paid_by_hash(self) -> dict[str, str]:
        wallet = self.anvil.new_wallet()
        return {"payment-signature": self.anvil.send(wallet, USDC, transfer())}

    def paid_by_signature(self) -> dict[str, str]:
        echo = {
            "scheme": "exact",
            "network": "eip155:8453",
            "amount": str(DUE),
            "asset": USDC,
            "payTo": RECIPIENT,
        }
        return header(sign_authorization(self.anvil.new_wallet(), RECIPIENT, DUE), echo)


class Ask:
    """One request that pays."""

    def __init__(self, target: str, headers: dict[str, str], method: str = "GET", body: Any = None) -> None:
        self.target, self.headers, self.method, self.body = target, headers, method, body


@pytest.fixture(scope="module")
def processes() -> Iterator[subprocess.Popen[str]]:
    """What forks the processes that are killed: it holds nothing of a test, and loading the function takes seconds."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.killed"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


@pytest.fixture
def shop(
    dynoxide: SyncDynamo,
    valkey_url: str,
    lab_files: lab.LabFiles,
    anvil: Anvil,
    dynoxide_url: str,
    processes: subprocess.Popen[str],
) -> Iterator[Shop]:
    made = Shop(dynoxide, valkey_url, lab_files, anvil, dynoxide_url, processes)
    yield made
    made.close()


@pytest.mark.parametrize("by_job", [False, True], ids=["next request", "job"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("rail", ["hash", "exact"])
def test_a_purchase_survives_a_kill_at_every_step(shop: Shop, rail: str, after: bool, by_job: bool) -> None:
    for step in range(STEPS_MAX):
        headers = shop.paid_by_hash() if rail == "hash" else shop.paid_by_signature()
        ask = Ask(QUERY, headers)
        ran = shop.killed(ask, step, after)
        if by_job:
            owed = shop.dynamo.run(owed_table.all_owed(f"{PREFIX}sales", 10)).rows
            assert shop.late()["served"] == len(owed)
            assert shop.minted() >= step + len(owed)
        answer = shop.ask(ask)
        assert answer.status == 200, (step, answer.body)
        assert shop.ask(ask).body["proxy"] == answer.body["proxy"]
        assert answer.body["credit"]["allocatedBytes"] == 10**8
        assert shop.minted() == step + 1, "one payment, one key"
        assert shop.dynamo.run(owed_table.all_owed(f"{PREFIX}sales", 10)).rows == ()
        if not ran["killed"]:
            assert ran["status"] == 200
            break
    else:
        pytest.fail("it never came to its end")
    assert step >= (2 if rail == "hash" else 6), "the steps were met"
    open_ones = [i for i in all_incidents(shop.dynamo, f"{PREFIX}guard") if not i.closed_at_ms]
    assert open_ones == []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_top_up_survives_a_kill_at_every_step(shop: Shop, after: bool) -> None:
    token = shop.ask(Ask(QUERY, shop.paid_by_hash())).body["sessionToken"]
    body, mine = {"addTrafficGB": 0.1}, {"x-session-token": token}
    assert shop.call(TOPUP, "POST", body, mine).status == 402
    for step in range(STEPS_MAX):
        ask = Ask(TOPUP, {**mine, **shop.paid_by_hash()}, "POST", body)
        ran = shop.killed(ask, step, after)
        if step % 2:
            shop.late()
        answer = shop.ask(ask)
        assert answer.status == 200, (step, answer.body)
        assert answer.body["credit"]["allocatedBytes"] == (step + 2) * 10**8
        if not ran["killed"]:
            return
    pytest.fail("it never came to its end")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_balance_survives_a_kill_at_every_step(shop: Shop, after: bool) -> None:
    for step in range(STEPS_MAX):
        ask = Ask(BALANCE, {**shop.reseller, **shop.paid_by_hash()}, "POST", {})
        ran = shop.killed(ask, step, after)
        if step % 2:
            shop.late()
        answer = shop.ask(ask)
        assert answer.status == 200, (step, answer.body)
        found = shop.dynamo.run(get_prepaid(f"{PREFIX}access", RESELLER))
        assert found is not None
        assert found.credited_bytes == found.available_bytes == (step + 1) * 10**8
        if not ran["killed"]:
            return
    pytest.fail("it never came to its end")
