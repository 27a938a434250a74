"""The serverless half on one machine: functions, routes and schedules exactly as serverless.yml declares them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from local.api_gateway import ApiGateway
from local.lambda_runtime import INVOKE_TIMEOUT_S, Code, FunctionFailed, LocalFunction
from local.supervisor import Supervisor
from local.tables import read_serverless

_RATE: Final = re.compile(r"rate\((\d+) (minute|hour|day)s?\)")
_UNIT_S: Final = {"minute": 60, "hour": 3600, "day": 86_400}
WORKERS_MAX: Final = {"api": 2, "x402": 2}
"""Of functions behind the API, whose first worker is there from the start; of others one, when it is asked."""

log = logging.getLogger("psx.local")


@dataclass(frozen=True, slots=True)
class Schedule:
    """One EventBridge schedule: which function gets which event, how often."""

    name: str
    function: str
    every_s: int
    event: Mapping[str, Any]


def read_schedules(stage: str) -> list[Schedule]:
    """All schedules of serverless.yml. Raises ValueError for a rate that is not understood here."""
    found = []
    for name, function in read_serverless(stage)["functions"].items():
        for event in function["events"]:
            if "eventBridge" not in event:
                continue
            entry = event["eventBridge"]
            rate = _RATE.fullmatch(entry["schedule"])
            if rate is None:
                raise ValueError(f"schedule of {name}: {entry['schedule']} is not understood")
            every_s = int(rate.group(1)) * _UNIT_S[rate.group(2)]
            found.append(Schedule(entry["input"]["job"], name, every_s, entry["input"]))
    return found


def read_routes(stage: str) -> dict[str, str]:
    """Path prefix -> function, from the httpApi events of serverless.yml."""
    routes = {}
    for name, function in read_serverless(stage)["functions"].items():
        for event in function["events"]:
            route = event.get("httpApi")
            if route == "*":
                routes["/"] = name
            elif route is not None:
                routes[route["path"].partition("{")[0]] = name
    return routes


class LocalCloud:
    """Functions behind a local API Gateway, with a clock that fires their schedules."""

    def __init__(
        self,
        supervisor: Supervisor,
        stage: str,
        environments: Mapping[str, Mapping[str, str]],
        code: Mapping[str, Code] | None = None,
    ) -> None:
        self._supervisor = supervisor
        self._environments = environments
        functions = read_serverless(stage)["functions"]
        self.functions = {
            n: LocalFunction(
                n,
                f["handler"],
                WORKERS_MAX.get(n, 1),
                f.get("timeout", INVOKE_TIMEOUT_S),
                (code or {}).get(n),
            )
            for n, f in functions.items()
        }
        self.schedules = {s.name: s for s in read_schedules(stage)}
        self.gateway = ApiGateway({p: self.functions[n] for p, n in read_routes(stage).items()})
        self._clock: list[asyncio.Task[None]] = []

    async def start(self, host: str, port: int) -> None:
        """Let every function be asked, and listen."""
        for name, function in self.functions.items():
            await function.start(self._supervisor, self._environments[name])
        for name in WORKERS_MAX:
            await self.functions[name].have_workers(1)
        await self.gateway.start(host, port)

    def start_clock(self) -> None:
        """Fire every schedule at its rate from now on."""
        loop = asyncio.get_running_loop()
        self._clock = [loop.create_task(self._tick(s)) for s in self.schedules.values()]

    async def fire(self, name: str) -> Any:
        """Fire a schedule now, for one round: the same function, with the same event. Raises FunctionFailed."""
        schedule = self.schedules[name]
        return await self.functions[schedule.function].invoke({**schedule.event, "span_s": 0})

    async def _tick(self, schedule: Schedule) -> None:
        while True:
            await asyncio.sleep(schedule.every_s)
            try:
                await self.functions[schedule.function].invoke(schedule.event)
            except FunctionFailed as failed:
                log.warning("schedule failed: %s: %s", schedule.name, failed)

    async def stop(self) -> None:
        """Stop the clock and the listeners."""
        for task in self._clock:
            task.cancel()
        await asyncio.gather(*self._clock, return_exceptions=True)
        self.gateway.stop()
        for function in self.functions.values():
            function.stop()
