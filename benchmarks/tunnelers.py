"""The full path beside reverse tunnels in Go and Rust, in the same topology: a haproxy stands where our gateway stands.

customer -> haproxy -> tunnel's server -> tunnel's client -> target, without TLS where the program lets one choose (chisel
is SSH inside a WebSocket and always encrypts). They select nothing, authenticate no customer and count nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from benchmarks import installs, rivals
from benchmarks.bed import Bed, interleave, quiet
from benchmarks.gateway import TUNNEL_CONNECTIONS, TUNNEL_SECONDS, measure_bulk, measure_tunnels
from benchmarks.load import Way, run_load
from benchmarks.nodes import Nodes
from benchmarks.path import our_way
from benchmarks.row import OURS, Goal, Reading, Row, compare
from local.supervisor import free_port


def measure() -> list[Row]:
    """Bulk, new tunnels per second, and the 99th percentile of those tunnels."""
    return asyncio.run(_rows())


async def _rows() -> list[Row]:
    kinds: tuple[tuple[str, str, Callable[[Way], Coroutine[Any, Any, Reading]], bool], ...] = (
        ("tunnelers_bulk", "MB/s", measure_bulk, False),
        ("tunnelers_tunnels", "tunnels/s", measure_tunnels, False),
        ("tunnelers_p99", "us p99", _measure_p99, True),
    )
    async with Bed() as bed, Nodes(bed) as nodes:
        ways = {OURS: await our_way(bed, nodes)}
        for name, start in _STARTS.items():
            ways |= await bed.rival(name, _behind_haproxy(bed, start))
        rows = []
        for name, unit, measuring, at_most in kinds:
            rounds = await interleave({who: partial(measuring, way) for who, way in ways.items()})
            goals = [Goal(rival, 1, at_most) for rival in _STARTS]
            rows.append(compare(name, unit, rounds, goals, bed.missing))
    return rows


async def _measure_p99(way: Way) -> Reading:
    figures = await run_load("tunnels", way, conns=TUNNEL_CONNECTIONS, seconds=TUNNEL_SECONDS)
    await quiet(way.parts)
    return Reading(figures.p99_us)


async def _behind_haproxy(bed: Bed, start: Callable[[Bed, str], Coroutine[Any, Any, Way]]) -> Way:
    inner = await start(bed, await bed.target())
    front = await rivals.haproxy(bed, inner.at)
    return Way(front.at, parts=(*front.parts, *inner.parts))


async def _pair(bed: Bed, name: str, server: list[str], server_port: int, client: list[str], at: int) -> Way:
    """Both ends; the tunnel stands when the server listens at `at` for it."""
    first = await bed.listener(f"{name}-server", server, server_port)
    second = await bed.listener(f"{name}-client", client, at)
    return Way(f"127.0.0.1:{at}", parts=(first, second))


async def _chisel(bed: Bed, target: str) -> Way:
    program, port, at = str(await installs.chisel()), free_port(), free_port()
    server = [program, "server", "--host", "127.0.0.1", "--port", str(port), "--reverse"]
    client = [program, "client", f"http://127.0.0.1:{port}", f"R:127.0.0.1:{at}:{target}"]
    return await _pair(bed, "chisel", server, port, client, at)


async def _frp(bed: Bed, target: str) -> Way:
    programs, port, at = await installs.frp(), free_port(), free_port()
    host, _, target_port = target.rpartition(":")
    quietly = 'log.level = "error"\n'
    server = f'bindAddr = "127.0.0.1"\nbindPort = {port}\nproxyBindAddr = "127.0.0.1"\n{quietly}'
    client = (
        f'serverAddr = "127.0.0.1"\nserverPort = {port}\ntransport.tls.enable = false\n{quietly}'
        f'[[proxies]]\nname = "bench"\ntype = "tcp"\nlocalIP = "{host}"\nlocalPort = {target_port}\nremotePort = {at}\n'
    )
    commands = [
        [str(program), "-c", bed.file(f"{program.name}.toml", text)]
        for program, text in zip(programs, (server, client), strict=True)
    ]
    return await _pair(bed, "frp", commands[0], port, commands[1], at)


async def _wstunnel(bed: Bed, target: str) -> Way:
    program, port, at = str(await installs.wstunnel()), free_port(), free_port()
    url = f"ws://127.0.0.1:{port}"
    server = [program, "--log-lvl", "ERROR", "server", url]
    client = [program, "--log-lvl", "ERROR", "client", "-R", f"tcp://127.0.0.1:{at}:{target}", url]
    return await _pair(bed, "wstunnel", server, port, client, at)


async def _rathole(bed: Bed, target: str) -> Way:
    program, port, at = str(await installs.rathole()), free_port(), free_port()
    server = (
        f'[server]\nbind_addr = "127.0.0.1:{port}"\ndefault_token = "bench"\n'
        f'[server.services.bench]\nbind_addr = "127.0.0.1:{at}"\n'
    )
    client = (
        f'[client]\nremote_addr = "127.0.0.1:{port}"\ndefault_token = "bench"\n'
        f'[client.services.bench]\nlocal_addr = "{target}"\n'
    )
    commands = [
        [program, f"--{role}", bed.file(f"rathole-{role}.toml", text)]
        for role, text in (("server", server), ("client", client))
    ]
    return await _pair(bed, "rathole", commands[0], port, commands[1], at)


_STARTS: Final[dict[str, Callable[[Bed, str], Coroutine[Any, Any, Way]]]] = {
    "chisel": _chisel,
    "frp": _frp,
    "wstunnel": _wstunnel,
    "rathole": _rathole,
}
