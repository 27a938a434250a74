"""Runs the ten steps with a live display, prints a table at the end, and tells the truth by its exit status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from local.demo import loop_steps, sale_steps, supply_steps, watch_steps
from local.demo.story import CheckFailed, Story
from local.network import LocalNetwork
from local.supervisor import PartFailed

STEP_TIMEOUT_S: Final = 90
FACT_MAX_CHARS: Final = 96
STEPS: Final[tuple[tuple[str, Callable[[Story], Awaitable[None]]], ...]] = (
    ("parts start", supply_steps.parts_start),
    ("devices enrol", supply_steps.devices_enrol),
    ("prober grades", supply_steps.prober_grades),
    ("job lists", supply_steps.job_lists),
    ("agent buys", sale_steps.agent_buys),
    ("agent fetches", sale_steps.agent_fetches),
    ("bytes are capped", loop_steps.bytes_are_capped),
    ("peer dies and returns", loop_steps.peer_dies_and_returns),
    ("supplier is owed", loop_steps.supplier_is_owed),
    ("network watches itself", watch_steps.network_watches_itself),
)


@dataclass
class StepResult:
    """How a step went."""

    name: str
    ok: bool
    ms: int
    facts: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None


async def run_demo(json_file: Path | None, console: Console) -> int:
    """Exit status 0 only when every check of every step held."""
    began = time.monotonic()
    results: list[StepResult] = []
    with _interrupts():
        try:
            await _run_steps(results, console)
        except asyncio.CancelledError:
            console.print("[yellow]interrupted: everything was stopped[/]")
            return 130
    total_ms = int((time.monotonic() - began) * 1000)
    console.print(_table(results, total_ms))
    ok = len(results) == len(STEPS) and all(r.ok for r in results)
    if json_file is not None:
        totals = {"ok": ok, "steps": len(results), "passed": sum(r.ok for r in results), "ms": total_ms}
        text = json.dumps({"steps": [asdict(r) for r in results], "totals": totals}, indent=2)
        await asyncio.to_thread(json_file.write_text, text + "\n")
    return 0 if ok else 1


@contextlib.contextmanager
def _interrupts():  # type: ignore[no-untyped-def]  # a generator of nothing
    """SIGINT and SIGTERM cancel the demo, which then stops all parts."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - called inside one
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _run_steps(results: list[StepResult], console: Console) -> None:
    net = LocalNetwork()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            story = Story(net, lambda text: progress.console.print(f"  [dim]{text}[/]"))
            for number, (name, step) in enumerate(STEPS, 1):
                task = progress.add_task(f"{number}/{len(STEPS)} {name}: {_promise(step)}", total=None)
                result = await _one(name, step, story)
                results.append(result)
                progress.remove_task(task)
                _tell(progress.console, number, result, _promise(step))
                if not result.ok:
                    _tell_logs(progress.console, net)
                    return
    finally:
        await net.close()


def _promise(step: Callable[[Story], Awaitable[None]]) -> str:
    return (step.__doc__ or "").strip()


async def _one(name: str, step: Callable[[Story], Awaitable[None]], story: Story) -> StepResult:
    story.facts = {}
    began = time.monotonic()
    fault = None
    try:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            await step(story)
        story.net.supervisor.check()
        if refused := await asyncio.to_thread(story.net.refused):
            raise CheckFailed(f"users of the cache were refused: {', '.join(refused)}")
    except (CheckFailed, PartFailed) as failed:
        fault = str(failed)
    except TimeoutError:
        fault = f"not done within {STEP_TIMEOUT_S} s"
    except Exception as error:  # noqa: BLE001 - a step that breaks is a step that failed, told in one line
        fault = f"{type(error).__name__}: {error}"
    return StepResult(name, fault is None, int((time.monotonic() - began) * 1000), story.facts, fault)


def _tell(console: Console, number: int, result: StepResult, promise: str) -> None:
    mark = "[green]ok[/]  " if result.ok else "[red]FAIL[/]"
    console.print(
        f"{mark} [bold]{number} {result.name}[/]  {promise}  [dim]{result.ms} ms[/]", highlight=False
    )
    for name, value in result.facts.items():
        text = value if isinstance(value, str) else json.dumps(value)
        shown = text if len(text) <= FACT_MAX_CHARS else text[: FACT_MAX_CHARS - 1] + "…"
        console.print(f"       [cyan]{name}[/] {shown}", highlight=False, markup=True)
    if result.fault:
        console.print(f"       [red]{result.fault}[/]", highlight=False)


def _tell_logs(console: Console, net: LocalNetwork) -> None:
    for part in net.supervisor.parts.values():
        tail = part.tail().splitlines()[-3:]
        if any('"level": "error"' in line or "Traceback" in line for line in tail):
            console.print(f"[dim]{part.name}: {' | '.join(tail)}[/]", highlight=False, markup=False)


def _table(results: list[StepResult], total_ms: int) -> Table:
    table = Table(title="the full circle")
    table.add_column("step")
    table.add_column("held", justify="center")
    table.add_column("ms", justify="right")
    for number, (name, _) in enumerate(STEPS, 1):
        result = results[number - 1] if number <= len(results) else None
        held = "-" if result is None else "[green]yes[/]" if result.ok else "[red]no[/]"
        table.add_row(f"{number} {name}", held, "-" if result is None else str(result.ms))
    table.add_row("total", "", str(total_ms), end_section=True)
    return table
