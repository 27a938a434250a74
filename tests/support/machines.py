"""Machines of a lab: network namespaces around the one this process runs in, which is the internet between them.

For a process in network and mount namespaces of its own (`in_a_lab`): nothing here touches the machine, and all of it is
gone when that process ends. Source: ip-netns(8), unshare(1).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

NEEDED: Final = ("ip", "nft", "unshare", "wg", "wireguard-go")
COMMAND_TIMEOUT_S: Final = 10
INTERNET: Final = "198.51.100.1"
VPC: Final = "10.40.0.1"
NAMESPACES: Final = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def missing() -> str | None:
    """Why this machine cannot be a lab, or None."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    probe = ["unshare", *NAMESPACES, "ip", "tuntap", "add", "dev", "probe", "mode", "tun"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    return None if done.returncode == 0 else f"no namespaces or tunnel devices here: {done.stderr.strip()}"


def in_a_lab(module: str) -> list[str]:
    """The command that runs a module in namespaces of its own."""
    return ["unshare", *NAMESPACES, sys.executable, "-m", module]


def prepare() -> None:
    """Make this namespace the internet and the VPC: two addresses, forwarding, private folders for `ip` and `wg`."""
    for folder in ("/run/netns", "/run/wireguard"):
        os.makedirs(folder, exist_ok=True)
        run("mount", "-t", "tmpfs", "none", folder)
    run("ip", "link", "set", "lo", "up")
    for address in (INTERNET, VPC):
        run("ip", "address", "add", f"{address}/32", "dev", "lo")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


class Machine:
    """One namespace with a cable to the internet and public addresses of its own."""

    def __init__(
        self, name: str, address: str, more: Iterable[str] = (), networks: Iterable[str] = ()
    ) -> None:
        self.name = name
        self.address = address
        run("ip", "netns", "add", name)
        run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", f"to-{name}", "up")
        for interface in ("lo", "eth0"):
            self.run("ip", "link", "set", interface, "up")
        self.run("ip", "address", "add", f"{address}/32", "dev", "eth0")
        for extra in more:
            self.run("ip", "address", "add", f"{extra}/32", "dev", "lo")
        self.run("ip", "route", "add", INTERNET, "dev", "eth0")
        self.run("ip", "route", "add", "default", "via", INTERNET, "src", address)
        for network in (f"{address}/32", *networks):
            run("ip", "route", "add", network, "dev", f"to-{name}")

    def command(self, *command: str) -> list[str]:
        """The command that runs another one on this machine."""
        return ["ip", "netns", "exec", self.name, *command]

    def run(self, *command: str) -> str:
        """Run a command here and answer what it says."""
        return run(*self.command(*command))

    def cut(self, other: Machine) -> None:
        """Nothing goes between two machines from now on."""
        self.run("ip", "route", "add", "blackhole", f"{other.address}/32")
        other.run("ip", "route", "add", "blackhole", f"{self.address}/32")

    def mend(self, other: Machine) -> None:
        """The path is back."""
        self.run("ip", "route", "delete", "blackhole", f"{other.address}/32")
        other.run("ip", "route", "delete", "blackhole", f"{self.address}/32")


def run(*command: str, given: str = "") -> str:
    """Run a command that must succeed."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
