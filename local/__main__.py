"""`python -m local COMMAND`: what `./psx` runs once the environment stands."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from local.paths import ROOT

EXIT_USAGE: Final = 2
FAST_MARK: Final = "not slow"
TESTS_FAILED: Final = 1
OWN_WORDS: Final = {"test": {"--fast", "--second-look", "-h", "--help"}, "simulate": frozenset[str]()}
"""Of commands that pass all other words on: those that are for us."""
SECOND_LOOK_AT_MOST: Final = 20
"""Failed tests; when more fail than this, it was not the machine."""


class _Parser(argparse.ArgumentParser):
    """One clear line for a wrong call."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to look; exit status 2."""
        sys.stderr.write(f"psx: {message}; see ./psx --help\n")
        raise SystemExit(EXIT_USAGE)


def _of_a_stage(commands: Any, name: str, what: str) -> argparse.ArgumentParser:
    """A command that operates one deployed stage."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what)
    parser.add_argument("stage", choices=("dev", "staging", "prod"))
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="./psx", description="psx: a proxy network that AI agents buy from.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="run the whole loop once, every step checked, and end")
    demo.add_argument("--json", type=Path, metavar="FILE", help="also write steps and totals as JSON")
    up = commands.add_parser("up", help="run the network until Ctrl-C and print how to use it")
    for name, what in (("api", "API"), ("http", "HTTP proxy"), ("socks", "SOCKS5 proxy")):
        up.add_argument(
            f"--{name}-port", type=int, default=0, metavar="PORT", help=f"{what} port (0: any free one)"
        )
    test = commands.add_parser(
        "test", help="run the tests with coverage", epilog="Everything else is passed to pytest."
    )
    test.add_argument("--fast", action="store_true", help="only tests that need no server, without coverage")
    test.add_argument(
        "--second-look",
        action="store_true",
        help=f"up to {SECOND_LOOK_AT_MOST} failed tests run again, alone; whoever fails again fails, the others are named",
    )
    bench = commands.add_parser("bench", help="measure against peers in the same run")
    bench.add_argument("names", nargs="*", metavar="NAME", help="rows to measure (all)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    commands.add_parser("simulate", help="the rules of grading on a simulated fleet", add_help=False)
    packages = commands.add_parser("package", help="build one zip per Lambda function, ready to deploy")
    packages.add_argument("--python", default="3.12", metavar="VERSION", help="Python of the runtime (3.12)")
    nodes = commands.add_parser("artefact", help="build the versioned artefact of relay and gateway nodes")
    nodes.add_argument("--python", default="3.12", metavar="VERSION", help="Python of the nodes (3.12)")
    stage = _of_a_stage(commands, "configure", "write the secrets and parameters of a stage to AWS")
    stage.add_argument("--file", type=Path, required=True, metavar="FILE", help="parameters as a JSON object")
    first = _of_a_stage(
        commands, "admin", "the first administrator of a deployed stage, and its house account"
    )
    first.add_argument(
        "--key-file", type=Path, required=True, metavar="FILE", help="new file for the API key"
    )
    back = _of_a_stage(commands, "restore", "bring back rows that a table lost, from a restored copy of it")
    back.add_argument("table", help="access, devices, grades, guard, sales or usage")
    back.add_argument("--rows", required=True, metavar="PREFIX", help="how the keys of the rows begin")
    back.add_argument("--write", action="store_true", help="write them; without it they are only named")
    joined = _of_a_stage(commands, "peer", "let relays of another region reach the cache of the home region")
    joined.add_argument("region", help="AWS region of the relays")
    joined.add_argument("--remove", action="store_true", help="take it away again")
    adopted = _of_a_stage(commands, "adopt", "import the tables that a removed stage left into its new stack")
    adopted.add_argument("--write", action="store_true", help="import; without it they are only named")
    commands.add_parser("costs", help="what a month costs in AWS: the table of docs/operations/costs.md")
    fleet = commands.add_parser(
        "fleet",
        help="many simulated devices that register, connect and send heartbeats",
        description="Without --api the fleet gets a network of its own on this machine.",
    )
    fleet.add_argument("--devices", type=int, default=1000, metavar="N", help="how many (1000)")
    fleet.add_argument("--api", default="", metavar="URL", help="the API to register with")
    fleet.add_argument("--key-file", type=Path, metavar="FILE", help="file with the API key, for --api")
    fleet.add_argument(
        "--ca", type=Path, metavar="FILE", help="certificates to trust instead of the system's"
    )
    fleet.add_argument(
        "--source", action="append", default=[], metavar="CIDR", help="own addresses to come from; repeatable"
    )
    fleet.add_argument("--prefix", default="fleet", metavar="NAME", help="first part of device names (fleet)")
    fleet.add_argument(
        "--hold", type=float, default=60, metavar="S", help="stay this long once connected (60)"
    )
    fleet.add_argument("--at-once", type=int, default=16, metavar="N", help="registrations in flight (16)")
    fleet.add_argument(
        "--connects-per-s", type=float, default=200, metavar="N", help="new sockets a second (200)"
    )
    fleet.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    commands.add_parser("check", help="format, lint, types, import contracts")
    commands.add_parser("lock", help="compile the hash-pinned locks again")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; answers the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    own = OWN_WORDS.get(words[0]) if words else None
    passed_on = [] if own is None else [word for word in words[1:] if word not in own]
    given = _parser().parse_args(words if own is None else [words[0], *(w for w in words[1:] if w in own)])
    match given.command:
        case "demo":
            return _demo(given.json)
        case "up":
            return _up(given.api_port, given.http_port, given.socks_port)
        case "test":
            return _test(given.fast, given.second_look, passed_on)
        case "bench":
            return _run([sys.executable, "-m", "benchmarks", *given.names, *_json(given.json)])
        case "simulate":
            return _run([sys.executable, "-m", "local.simulation", *passed_on])
        case "fleet":
            return _fleet(given)
        case _:
            return _tool(given)


def _tool(given: argparse.Namespace) -> int:
    """A command of who builds and operates; each loads only its own."""
    match given.command:
        case "package":
            from local.packaging import package  # noqa: PLC0415

            return package(given.python)
        case "artefact":
            from local.node_artefact import artefact  # noqa: PLC0415

            return artefact(given.python)
        case "configure":
            from local.configure import configure  # noqa: PLC0415

            return configure(given.stage, given.file)
        case "admin":
            from local.admin import admin  # noqa: PLC0415

            return admin(given.stage, given.key_file)
        case "restore":
            from local.restore import restore  # noqa: PLC0415

            return restore(given.stage, given.table, given.rows, write=given.write)
        case "peer":
            from local.peering import peer  # noqa: PLC0415

            return peer(given.stage, given.region, remove=given.remove)
        case "adopt":
            from local.adopt import adopt  # noqa: PLC0415

            return adopt(given.stage, write=given.write)
        case "costs":
            from local.costs import costs  # noqa: PLC0415

            return costs()
        case "check":
            from local.check import check  # noqa: PLC0415

            return check()
        case _:
            from local.check import lock  # noqa: PLC0415

            return lock()


def _json(path: Path | None) -> list[str]:
    return [] if path is None else ["--json", str(path)]


def _demo(json_file: Path | None) -> int:
    from rich.console import Console  # noqa: PLC0415

    from local.demo.run import run_demo  # noqa: PLC0415
    from local.supervisor import PartFailed  # noqa: PLC0415

    try:
        return asyncio.run(run_demo(json_file, Console()))
    except PartFailed as failed:
        return _fail(str(failed))
    except KeyboardInterrupt:
        return 130


def _up(api: int, http: int, socks: int) -> int:
    from local.network import Ports  # noqa: PLC0415
    from local.supervisor import PartFailed, port_is_taken  # noqa: PLC0415
    from local.up import run_up  # noqa: PLC0415

    for port in (api, http, socks):
        if port and port_is_taken(port):
            return _fail(f"port {port} is taken: choose another one, or 0 for any free one")
    try:
        return asyncio.run(run_up(Ports(api, http, socks)))
    except PartFailed as failed:
        return _fail(str(failed))
    except KeyboardInterrupt:
        return 130


def _fleet(given: argparse.Namespace) -> int:
    from local.fleet import Plan, addresses, run_fleet  # noqa: PLC0415
    from local.supervisor import PartFailed  # noqa: PLC0415

    if bool(given.api) != bool(given.key_file):
        return _fail("--api and --key-file belong together")
    try:
        key = given.key_file.read_text().strip() if given.key_file else ""
        sources = addresses(given.source)
    except (OSError, ValueError) as error:
        return _fail(str(error))
    plan = Plan(
        api=given.api.rstrip("/"),
        key=key,
        devices=max(given.devices, 1),
        hold_s=given.hold,
        at_once=max(given.at_once, 1),
        connects_per_s=max(given.connects_per_s, 0.1),
        sources=sources,
        prefix=given.prefix,
        ca=given.ca,
    )
    try:
        return run_fleet(plan, given.json)
    except PartFailed as failed:
        return _fail(str(failed))
    except KeyboardInterrupt:
        return 130


def _test(fast: bool, second_look: bool, arguments: Sequence[str]) -> int:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        str((os.cpu_count() or 1) + (0 if fast else 2)),  # slow tests wait for half of their time and more
        "--dist",
        "loadfile",
        "--no-loadscope-reorder",  # the order is ours: tests/support/order.py
        "--max-worker-restart=3",  # who hangs is ended with its worker; the others go on
        *arguments,
    ]
    if fast:
        return _run([*command, "-p", "no:pytest_cov", "-m", FAST_MARK])
    if not any(not a.startswith("-") and "conformance" not in a for a in arguments):
        from local.sdks import prepare  # noqa: PLC0415

        prepare()
    coverage = [
        "--cov=shared",
        "--cov-branch",
        "--cov-report=term:skip-covered",
        "--cov-fail-under=0",
        "--whole-roles",
    ]
    narrowed = any(not a.startswith("-") for a in arguments)
    if second_look:
        _failed_tests().unlink(missing_ok=True)  # of an earlier run
    status = _run([*command, "--durations=10", *([] if narrowed else coverage)])
    if not narrowed and status in (0, TESTS_FAILED):
        gate = _run([sys.executable, "-m", "coverage", "report", "--format=total"])
        if gate != 0:
            sys.stdout.write("FAILED coverage of shared/, in percent, is under the gate in pyproject.toml\n")
            return gate
    return _look_again(status) if second_look and status == TESTS_FAILED else status


def _look_again(status: int) -> int:
    """Run the failed tests again, one after another; answers the status of that run (decision 0070)."""
    kept = _failed_tests()
    failed = sorted(json.loads(kept.read_text())) if kept.exists() else []
    if not 0 < len(failed) <= SECOND_LOOK_AT_MOST:
        return status
    sys.stdout.write("\n== failed beside others; once more, alone:\n" + "".join(f"   {t}\n" for t in failed))
    sys.stdout.flush()
    again = _run([sys.executable, "-m", "pytest", "-p", "no:randomly", *failed])
    if again == 0:
        names = "".join(f"   {t}\n" for t in failed)
        sys.stdout.write(f"== passed alone only: these depend on the machine's load, mend them\n{names}")
    return again


def _failed_tests() -> Path:
    """Where pytest keeps the names of the tests that failed last."""
    return ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"


def _run(command: Sequence[str]) -> int:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'sdk' / 'python'}"}
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 130


def _fail(message: str) -> int:
    sys.stderr.write(f"psx: {message}\n")
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
