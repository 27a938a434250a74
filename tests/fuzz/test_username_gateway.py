"""Whatever a username says, a real gateway answers it: with a tunnel or with a typed refusal, and goes on serving."""

import asyncio
import base64
import random
import re
import string

import pytest

from shared.kernel.codes import Refusal
from tests.support.dataplane import ACCOUNT, SECRET, Plane, echo
from tests.support.gateway import StartsGateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
ROUNDS = 400
ANSWER_MAX_S = 15.0
AT_ONCE = 8
TOKENS = (
    "rot", "sid", "ttl", "carrier", "city", "iptype", "isp", "asn", "failover", "pin", "strict", "any", "peer", "mbl",
    "us", "usa", "best", "lte", "sticky", "auto5", "hard", "device", "lease", "port", "p1", "strict", "samenode",
    "99999999999", "-1", "0", "zz", "", "mobile", "datacenter", "\N{SNOWMAN}", "%00", "'", "x" * 70,
)  # fmt: skip
HARMLESS = {
    Refusal.AUTH_INVALID, Refusal.RATE_LIMITED_AUTH, Refusal.USERNAME_PARSE, Refusal.NO_STOCK, Refusal.SESSION_LIMIT,
    Refusal.STOCK_DEGRADED,
}  # fmt: skip


def made(chance: random.Random) -> str:
    """A username: a right beginning and any tokens, or anything at all."""
    if chance.random() < 0.15:
        return "".join(chance.choices(string.printable, k=chance.randint(0, 300)))
    tokens = chance.choices(TOKENS, k=chance.randint(0, 12))
    if chance.random() < 0.3:
        tokens = ["".join(chance.choices(string.ascii_letters + string.digits + "_.", k=5)) for _ in tokens]
    return "-".join([ACCOUNT, *tokens])


async def answer(port: int, target: int, username: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    token = base64.b64encode(f"{username}:{SECRET}".encode()).decode()
    writer.write(
        f"CONNECT 127.0.0.1:{target} HTTP/1.1\r\nProxy-Authorization: Basic {token}\r\n\r\n".encode()
    )
    try:
        async with asyncio.timeout(ANSWER_MAX_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if head.startswith("HTTP/1.1 200 "):
                writer.write(b"ping")
                assert await reader.readexactly(4) == b"ping"
                return "200"
            length = int(re.search(r"content-length: (\d+)", head.lower())[1])  # type: ignore[index]  # every refusal has one
            return (await reader.readexactly(length)).decode()
    finally:
        writer.close()


async def test_no_username_breaks_a_gateway_and_every_refusal_has_its_code(
    plane: Plane, gateway_process: StartsGateway
) -> None:
    await plane.add_peer("p1")
    port = await plane.target(echo)
    gateway = gateway_process(port)
    await gateway.start()
    chance, codes = random.Random(5), {refusal.value for refusal in HARMLESS}
    room = asyncio.Semaphore(AT_ONCE)
    seen: dict[str, int] = {}

    async def one(username: str) -> None:
        async with room:
            told = await answer(gateway.port, port, username)
        code = told.partition(":")[0]
        assert code == "200" or code in codes, (username, told)
        assert code == "200" or re.search(r"\(req: [0-9a-f-]{36}\)", told), told
        seen[code] = seen.get(code, 0) + 1

    await asyncio.gather(*(one(made(chance)) for _ in range(ROUNDS)))
    assert seen["200"] > 20
    assert len(seen) >= 3
    assert await answer(gateway.port, port, f"{ACCOUNT}-peer-us") == "200"
