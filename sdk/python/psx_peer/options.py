"""What the owner of a device can set: flags, each of which also reads an environment variable."""

import argparse
import os
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TERMS_VERSION: Final = "2026-11"
TERMS_TEXT: Final = """\
Sharing this device's connection:
  - customers' web traffic leaves through your internet connection, and uses your data allowance;
  - you are paid per GB that was carried; the rate is shown when the device registers;
  - your local network, mail ports and private addresses are never reachable through it;
  - you can stop at any time with Ctrl-C (or by stopping the process); open connections end at once.
"""
MAX_SOCKETS: Final = 8


@dataclass(frozen=True)
class Options:
    """A peer's settings. The API key is kept out of the argument list: environment or file."""

    api: str
    api_key: str
    name: str
    terms_version: str
    connections: int
    state_file: Path
    relay: str | None = None
    wallet: str | None = None
    bind: str | None = None
    ca_file: Path | None = None
    redial_min_s: float = 5.0
    redial_max_s: float = 7.0
    heartbeat_s: float = 30.0
    protocol: str = "binary-v2"
    lab_allow: frozenset[tuple[str, int]] = frozenset()
    lab_hosts: tuple[tuple[str, str], ...] = ()
    verbose: bool = False


def _parser() -> argparse.ArgumentParser:
    env = os.environ.get
    parser = argparse.ArgumentParser(
        prog="psx-peer",
        description="Share this device's internet connection and earn USDC.",
        epilog="The API key is read from API_KEY or --key-file, never from the command line.",
    )
    parser.add_argument("--api", default=env("PSX_API"), help="API base URL [PSX_API]")
    parser.add_argument(
        "--key-file", type=Path, default=None, help="file that holds the API key [or API_KEY]"
    )
    parser.add_argument("--name", default=env("AGENT_NAME"), help="stable name of this device [AGENT_NAME]")
    parser.add_argument("--wallet", default=env("WALLET"), help="payout wallet [WALLET]")
    parser.add_argument(
        "--connections", type=int, default=int(env("WS_CONNECTIONS", "4")), help="1-8 [WS_CONNECTIONS]"
    )
    default_state = env("PEER_STATE_FILE", str(Path.home() / ".psx-peer-state.json"))
    parser.add_argument(
        "--state", type=Path, default=Path(default_state), help="identity file [PEER_STATE_FILE]"
    )
    parser.add_argument(
        "--relay", default=env("RELAY_URL"), help="pin a relay; empty = chosen by the API [RELAY_URL]"
    )
    parser.add_argument(
        "--bind", default=env("PEER_BIND"), help="local address of all connections [PEER_BIND]"
    )
    parser.add_argument(
        "--ca-file", type=Path, default=None, help="trust these certificates instead of the system's"
    )
    parser.add_argument(
        "--accept-terms",
        default=env("PSX_ACCEPT_TERMS"),
        metavar="VERSION",
        help=f"agree to sharing without being asked (now: {TERMS_VERSION}) [PSX_ACCEPT_TERMS]",
    )
    parser.add_argument(
        "--verbose", action="store_true", default=env("VERBOSE") == "true", help="log tunnels [VERBOSE]"
    )
    return parser


def read_options(argv: list[str] | None = None) -> Options:
    """Options from flags and environment; exits with a clear line when something is missing."""
    parser = _parser()
    given = parser.parse_args(argv)
    api_key = given.key_file.read_text().strip() if given.key_file else os.environ.get("API_KEY", "")
    if not given.api:
        parser.error("--api is missing")
    if not api_key and not given.wallet:
        parser.error("no API key: set API_KEY or --key-file (or give --wallet alone)")
    if not 1 <= given.connections <= MAX_SOCKETS:
        parser.error("--connections must be 1 to 8")
    if not given.name:
        given.name = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        sys.stderr.write(f"warning: no --name; as {given.name!r} this is a new device at every start\n")
    lab = os.environ.get("PSX_STAGE") == "local"
    if not given.api.startswith("https://") and not lab:
        parser.error("--api must begin with https://: the API key would travel in the clear")
    return Options(
        api=given.api.rstrip("/"),
        api_key=api_key,
        name=given.name,
        terms_version=given.accept_terms or _ask(parser),
        connections=given.connections,
        state_file=given.state,
        relay=given.relay or None,
        wallet=given.wallet or None,
        bind=given.bind or None,
        ca_file=given.ca_file,
        protocol=_protocol(),
        redial_min_s=float(os.environ.get("PSX_REDIAL_MIN_S", "5")) if lab else 5.0,
        redial_max_s=float(os.environ.get("PSX_REDIAL_MAX_S", "7")) if lab else 7.0,
        lab_allow=_pairs(os.environ.get("PSX_EGRESS_LAB_ALLOW", "")) if lab else frozenset(),
        lab_hosts=_hosts(os.environ.get("PSX_LAB_HOSTS", "")) if lab else (),
        verbose=given.verbose,
    )


def _protocol() -> str:
    """What this device asks for; a relay that knows only v1 answers so."""
    return "binary-v1" if os.environ.get("PSX_PROTOCOL") == "binary-v1" else "binary-v2"


def _ask(parser: argparse.ArgumentParser) -> str:
    """Show what is shared and ask once; without a terminal somebody must have agreed by flag."""
    if not sys.stdin.isatty():
        parser.error(
            f"--accept-terms {TERMS_VERSION} is needed: the owner must agree to share this connection"
        )
    sys.stdout.write(TERMS_TEXT)
    if input("Do you agree? [y/N] ").strip().lower() not in {"y", "yes"}:
        raise SystemExit("not agreed: nothing was shared")
    return TERMS_VERSION


def _pairs(text: str) -> frozenset[tuple[str, int]]:
    entries = (entry.rpartition(":") for entry in text.split(",") if entry)
    return frozenset((address, int(port)) for address, _, port in entries)


def _hosts(text: str) -> tuple[tuple[str, str], ...]:
    entries = (entry.partition("=") for entry in text.split(",") if entry)
    return tuple((name.lower(), address) for name, _, address in entries)
