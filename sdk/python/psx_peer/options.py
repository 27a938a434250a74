"""What the owner of a device can set: flags, each of which also reads an environment variable. The same in every SDK."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from psx_peer.consent import TERMS_TEXT, TERMS_VERSION, Consent, NotAgreed, obtain
from psx_peer.limits import Schedule, on_charger
from psx_peer.pulse import Times
from psx_peer.state import read_state

MAX_SOCKETS: Final = 8
MAX_INSTANCES: Final = 1000

__all__ = ["TERMS_TEXT", "TERMS_VERSION", "Options", "read_options"]


@dataclass(frozen=True)
class Options:
    """A peer's settings, all checked."""

    api: str
    api_key: str
    name: str
    consent: Consent
    connections: int
    state_file: Path
    country: str = "US"
    relay: str | None = None
    wallet: str | None = None
    bind: str | None = None
    ca_file: Path | None = None
    limit_mbit: float | None = None
    schedule: Schedule | None = None
    only_charging: bool = False
    keep_state: bool = True
    times: Times = Times()  # noqa: RUF009 - frozen
    protocol: str = "binary-v2"
    lab_allow: frozenset[tuple[str, int]] = frozenset()
    lab_hosts: tuple[tuple[str, str], ...] = ()
    verbose: bool = False
    dry_run: bool = False
    withdraw: bool = False
    instances: int = 1

    def instance(self, number: int) -> Options:
        """One device of a fleet: its own stable name, its own state file."""
        name = f"{self.name}-{number:03d}"
        return replace(self, name=name, state_file=self.state_file / f"{name}.json", instances=1)


class _Parser(argparse.ArgumentParser):
    """Flags with one dash or two, each with its variable; one clear line for a wrong call."""

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **given)

    def flag(self, name: str, what: str, variable: str = "", **given: Any) -> None:
        """Add one."""
        default = os.environ.get(variable) if variable else None
        if given.get("action") == "store_true":
            default = default in {"true", "1", "yes"}  # type: ignore[assignment]
        shown = f"{what} [{variable}]" if variable else what
        given.setdefault("default", default or given.pop("otherwise", None))
        given.pop("otherwise", None)
        self.add_argument(f"-{name}", f"--{name}", dest=name.replace("-", "_"), help=shown, **given)

    def error(self, message: str) -> NoReturn:
        """Exit status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def _parser(*, fleet: bool) -> _Parser:
    parser = _Parser(
        prog="psx-peer fleet" if fleet else "psx-peer",
        description="Share this device's internet connection and earn USDC. `psx-peer fleet` runs several devices.",
        epilog="Others can read a command line: give the key by API_KEY or -key-file rather than by -key.",
    )
    flag = parser.flag
    flag("api", "API base URL", "PSX_API")
    flag("key", "API key", "API_KEY")
    flag("key-file", "file that holds the API key", type=Path)
    flag("name", "stable name of this device (of a fleet: what its names begin with)", "AGENT_NAME")
    flag("country", "country; the API decides by the address", "COUNTRY", otherwise="US")
    flag("connections", "relay sockets, 1-8", "WS_CONNECTIONS", otherwise="4")
    flag("wallet", "payout wallet", "WALLET")
    state = str(Path.home() / (".psx-fleet" if fleet else ".psx-peer-state.json"))
    flag("state", f"identity {'folder' if fleet else 'file'}", "PEER_STATE_FILE", otherwise=state)
    flag("relay", "pin a relay; else the API chooses", "RELAY_URL")
    flag("bind", "local address of all connections", "PEER_BIND")
    flag("ca-file", "trust these certificates instead of the system's", "PSX_CA_FILE")
    flag("limit-mbit", "at most so many Mbit/s, both directions together", "PSX_LIMIT_MBIT")
    flag("schedule", "share only at these hours, HH:MM-HH:MM, local time", "PSX_SCHEDULE")
    flag("only-charging", "share only on mains power", "PSX_ONLY_CHARGING", action="store_true")
    flag("random-name", "be a new device at every start", action="store_true")
    flag("accept-terms", f"agree to version {TERMS_VERSION} of the terms", "PSX_ACCEPT_TERMS")
    flag("withdraw", "take the agreement back: what runs ends within seconds", action="store_true")
    flag("verbose", "log tunnels", "VERBOSE", action="store_true")
    flag("dry-run", "show what would be done, and do nothing", action="store_true")
    if fleet:
        flag("count", "devices to run, each with its own name", "PSX_FLEET_COUNT", otherwise="2")
    return parser


def read_options(argv: Sequence[str] | None = None) -> Options:
    """Options from flags and environment; exits with a clear line when something is missing or not agreed."""
    argv = sys.argv[1:] if argv is None else list(argv)
    fleet = argv[:1] == ["fleet"]
    parser = _parser(fleet=fleet)
    given = parser.parse_args(argv[1:] if fleet else argv)
    lab = os.environ.get("PSX_STAGE") == "local"
    api_key = _key(parser, given)
    if not given.api:
        parser.error("-api is missing: the API's base URL")
    if not urlsplit(given.api).hostname:
        parser.error("-api is no URL with a host")
    _check_files(parser, given)
    if not given.api.startswith("https://") and not lab:
        parser.error("-api must begin with https://: the API key would travel in the clear")
    if not api_key and not given.wallet and not given.withdraw:
        parser.error("no API key: set API_KEY or -key-file (or give -wallet alone)")
    instances = _whole(parser, "count", given.count, 1, MAX_INSTANCES) if fleet else 1
    if fleet and (given.random_name or not given.name):
        parser.error("a fleet needs -name: random names would make new devices at every start")
    saved = {} if fleet or given.random_name else read_state(Path(given.state))
    try:
        schedule = Schedule(given.schedule) if given.schedule else None
        times = _times(os.environ.get("PSX_LAB_TIMES", "")) if lab else Times()
    except ValueError as wrong:
        parser.error(f"{wrong}")
    if given.only_charging and on_charger() is None:
        parser.error("-only-charging: this machine does not say whether it is on mains power")
    return Options(
        api=given.api.rstrip("/"),
        api_key=api_key,
        name=_name(given, saved),
        consent=_consent(parser, given, saved),
        connections=_whole(parser, "connections", given.connections, 1, MAX_SOCKETS),
        state_file=Path(given.state),
        country=given.country,
        relay=given.relay or None,
        wallet=given.wallet or None,
        bind=given.bind or None,
        ca_file=Path(given.ca_file) if given.ca_file else None,
        limit_mbit=_positive(parser, given.limit_mbit),
        schedule=schedule,
        only_charging=given.only_charging,
        keep_state=not given.random_name,
        times=times,
        protocol=_protocol(),
        lab_allow=_pairs(os.environ.get("PSX_EGRESS_LAB_ALLOW", "")) if lab else frozenset(),
        lab_hosts=_hosts(os.environ.get("PSX_LAB_HOSTS", "")) if lab else (),
        verbose=given.verbose,
        dry_run=given.dry_run,
        withdraw=given.withdraw,
        instances=instances,
    )


def _key(parser: _Parser, given: argparse.Namespace) -> str:
    try:
        return given.key_file.read_text().strip() if given.key_file else given.key or ""
    except (OSError, UnicodeDecodeError) as fault:
        parser.error(f"-key-file: {getattr(fault, 'strerror', None) or 'is no text'}")


def _check_files(parser: _Parser, given: argparse.Namespace) -> None:
    """What will be wrong at every try is told before the first one: an API that is away is another matter."""
    try:
        if given.ca_file:
            ssl.create_default_context(cafile=given.ca_file)
    except ssl.SSLError:
        parser.error("-ca-file holds no certificate")
    except OSError as fault:
        parser.error(f"-ca-file: {fault.strerror}")
    if given.bind:
        family = socket.AF_INET6 if ":" in given.bind else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((given.bind, 0))
        except OSError as fault:
            parser.error(f"-bind: {fault.strerror or 'is no address of this machine'}")


def _name(given: argparse.Namespace, saved: dict[str, Any]) -> str:
    """As given, else as kept, else a new one that the state file keeps."""
    kept = saved.get("name")
    fresh = f"{socket.gethostname()}-{secrets.token_hex(4)}"
    if given.random_name:
        return fresh
    return str(given.name or (kept if isinstance(kept, str) else "") or fresh)


def _consent(parser: _Parser, given: argparse.Namespace, saved: dict[str, Any]) -> Consent:
    if given.dry_run or given.withdraw:
        return Consent(given.accept_terms or "", 0, "none")
    try:
        return obtain(given.accept_terms, saved.get("consent"))
    except NotAgreed as refusal:
        parser.error(str(refusal))


def _whole(parser: _Parser, name: str, text: str, low: int, high: int) -> int:
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        parser.error(f"-{name} must be {low} to {high}")
    return int(text)


def _positive(parser: _Parser, text: str | None) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1_000_000:
        parser.error("-limit-mbit must be a number above 0")
    return value


def _times(text: str) -> Times:
    given = dict(entry.split("=", 1) for entry in text.split(",") if entry)
    known = {field.name for field in fields(Times)}
    for low, high in (("redial_min", "PSX_REDIAL_MIN_S"), ("redial_max", "PSX_REDIAL_MAX_S")):
        given.setdefault(low, os.environ.get(high, str(getattr(Times(), low))))
    return Times(**{name: float(value) for name, value in given.items() if name in known})


def _protocol() -> str:
    """What this device asks for; a relay that knows only v1 answers so."""
    return "binary-v1" if os.environ.get("PSX_PROTOCOL") == "binary-v1" else "binary-v2"


def _pairs(text: str) -> frozenset[tuple[str, int]]:
    entries = (entry.rpartition(":") for entry in text.split(",") if entry)
    return frozenset((address, int(port)) for address, _, port in entries)


def _hosts(text: str) -> tuple[tuple[str, str], ...]:
    entries = (entry.partition("=") for entry in text.split(",") if entry)
    return tuple((name.lower(), address) for name, _, address in entries)
