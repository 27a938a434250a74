"""`python -m infra.nodes.boot`: make this machine a node: read its parameters, write its settings, start its units.

Runs at the first boot, from the artefact that user data fetched and checked. Settings are in files below `/etc/psx`;
secrets are in none of them: each process reads its own from Secrets Manager (`PSX_SECRETS`). Leaves out fetching the
artefact (user data in `nodes.yml`), leaving (`lifecycle.py`) and what is shipped to CloudWatch (`agent.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infra.nodes.agent import agent_settings, scrape_settings

METADATA_URL: Final = "http://169.254.169.254/latest/"
METADATA_TIMEOUT_S: Final = 5
METADATA_LIFE_S: Final = 300
WIREGUARD_PORT: Final = 51820
PRIVATE_PORTS: Final = {"relay": 9100, "mesh": 9101, "prober": 9102, "gateway": 9110}
"""A gateway's workers count on from theirs."""
PEER_PORT: Final = 7080
GATEWAY_PORTS: Final = {"http": 7000, "socks": 7001}
TARGET_PORTS: Final = {"probe": 7020, "page": 7021}
READY: Final[Mapping[str, str]] = {
    "relay": f"http://127.0.0.1:{PRIVATE_PORTS['relay']}/ready",
    "gateway": f"http://127.0.0.1:{PRIVATE_PORTS['gateway']}/ready",
    "target": f"http://127.0.0.1:{TARGET_PORTS['page']}/page?nonce=health",
}
"""What a fresh node has to answer well once. A target answers nothing but probes, so one of these tells of it."""
UNITS: Final[Mapping[str, tuple[str, ...]]] = {
    "relay": ("psx-firewall", "psx-mesh", "psx-relay", "psx-lifecycle"),
    "gateway": ("psx-firewall", "psx-mesh", "psx-gateway", "psx-prober", "psx-lifecycle"),
    "target": ("psx-target", "psx-lifecycle"),
}
READS: Final[Mapping[str, frozenset[str]]] = {
    "relay": frozenset({"network/redis-url", "relays", "nodes/jwt-public-key", "nodes/ip-data-bucket"}),
    "gateway": frozenset(
        {
            "network/redis-url",
            "house-account",
            "nodes/ip-data-bucket",
            "nodes/probe-targets",
            "nodes/probe-target-keys",
        }
    ),
    "target": frozenset(),
}
"""Parameters that each role cannot start without, by their names below `/psx/<stage>/`."""
SECRETS: Final[Mapping[str, tuple[str, ...]]] = {
    "relay": ("mesh", "cache-relay"),
    "gateway": ("credentials", "modems", "mesh", "cache-gateway"),
    "prober": ("credentials", "modems", "mesh", "cache-prober", "probe-asking"),
    "target": ("probe-target", "probe-asking"),
}
"""What each program reads, by names below `psx/<stage>/`."""
SETTINGS: Final = Path("/etc/psx")
SYSTEMD: Final = Path("/etc/systemd/system")
STATE: Final = Path("/var/lib/psx")
AGENT: Final = Path("/opt/aws/amazon-cloudwatch-agent/etc")


class BootRefused(Exception):
    """What this machine was told does not make a node; the message names what is missing."""


@dataclass(frozen=True, slots=True)
class Instance:
    """What user data and the instance's metadata say."""

    role: str
    stage: str
    home_region: str
    region: str
    region_name: str
    region_number: int
    instance_id: str
    private_address: str
    vpc_network: str
    """Where the balancer's own addresses are too, in CIDR notation."""
    public_address: str
    cpus: int
    stack: str
    group: str
    """Logical id of the auto scaling group in the stack."""
    group_name: str


class Metadata:
    """The instance's own facts, by IMDSv2. Source: EC2 user guide, "Use the Instance Metadata Service"."""

    def __init__(self, url: str = METADATA_URL) -> None:
        self._url = url
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(METADATA_LIFE_S)}
        self._token = self._ask("api/token", headers, "PUT")

    def get(self, path: str) -> str:
        """One fact. Raises urllib's URLError."""
        return self._ask(f"meta-data/{path}", {"X-aws-ec2-metadata-token": self._token}, "GET")

    def _ask(self, path: str, headers: dict[str, str], method: str) -> str:
        asked = urllib.request.Request(self._url + path, headers=headers, method=method)  # noqa: S310 - our own address
        with urllib.request.urlopen(asked, timeout=METADATA_TIMEOUT_S) as answer:  # noqa: S310
            text: str = answer.read(4096).decode("ascii")
        return text


def parameters(client: Any, stage: str) -> dict[str, str]:
    """The stage's parameters by their names below `/psx/<stage>/`."""
    root = f"/psx/{stage}/"
    found: dict[str, str] = {}
    more: dict[str, str] = {}
    while True:
        page = client.get_parameters_by_path(Path=root, Recursive=True, **more)
        found |= {entry["Name"].removeprefix(root): entry["Value"] for entry in page["Parameters"]}
        if "NextToken" not in page:
            return found
        more = {"NextToken": page["NextToken"]}


def settings(instance: Instance, given: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """File below `/etc/psx` -> its variables: `node` for all, one more for each process. Raises BootRefused."""
    missing = sorted(name for name in READS[instance.role] if not given.get(name))
    if missing:
        raise BootRefused(f"missing parameters of {instance.stage}: {', '.join(missing)}")
    files = {
        "node": {
            "PSX_STAGE": instance.stage,
            "PSX_TABLE_PREFIX": f"psx-{instance.stage}-",
            "AWS_REGION": instance.home_region,
            "AWS_DEFAULT_REGION": instance.home_region,
        },
        "lifecycle": {
            "PSX_NODE_ROLE": instance.role,
            "PSX_NODE_REGION": instance.region,
            "PSX_NODE_INSTANCE": instance.instance_id,
            "PSX_NODE_STACK": instance.stack,
            "PSX_NODE_GROUP": instance.group,
            "PSX_NODE_GROUP_NAME": instance.group_name,
        },
    }
    if instance.role == "target":
        return files | _target(instance)
    files["node"]["PSX_REDIS_URL"] = given["network/redis-url"]
    files["mesh"] = _mesh(instance)
    return files | (_relay(instance, given) if instance.role == "relay" else _gateway(instance, given))


def _secrets(instance: Instance, program: str) -> str:
    return ",".join(f"psx/{instance.stage}/{name}" for name in SECRETS[program])


def _mesh(instance: Instance) -> dict[str, str]:
    return {
        "PSX_MESH_NODE_ID": instance.instance_id,
        "PSX_MESH_ROLE": instance.role,
        "PSX_MESH_REGION": instance.region,
        "PSX_MESH_REGION_NUMBER": str(instance.region_number),
        "PSX_MESH_ENDPOINT": f"{instance.public_address}:{WIREGUARD_PORT}",
        "PSX_MESH_INNER_ENDPOINT": f"{instance.private_address}:{WIREGUARD_PORT}",
        "PSX_MESH_STATE_DIR": "/var/lib/psx-mesh",
        "PSX_MESH_PRIVATE_LISTEN": f"127.0.0.1:{PRIVATE_PORTS['mesh']}",
        "PSX_MESH_ENV_FILE": "/run/psx/mesh.env",
    }


def _addresses(given: Mapping[str, str]) -> dict[str, str]:
    return {
        "PSX_ASN_MMDB": str(STATE / "geo" / "asn.mmdb"),
        "PSX_COUNTRY_MMDB": str(STATE / "geo" / "country.mmdb"),
        "PSX_IP_DATA_BUCKET": given["nodes/ip-data-bucket"],
    }


# Listeners of nodes are on every address: the security group lets in the balancer alone.
def _relay(instance: Instance, given: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {
        "relay": {
            **_addresses(given),
            "PSX_RELAY_ID": instance.instance_id,
            "PSX_RELAY_REGION": instance.region_name,
            "PSX_RELAY_PEER_LISTEN": f"0.0.0.0:{PEER_PORT}",
            "PSX_RELAY_PRIVATE_LISTEN": f"0.0.0.0:{PRIVATE_PORTS['relay']}",
            "PSX_RELAY_DRAIN_MAX_S": "600",
            "PSX_RELAYS": given["relays"],
            "PSX_JWT_PUBLIC_KEY": given["nodes/jwt-public-key"],
            "PSX_REDIS_USER": "relay",
            "PSX_SECRETS": _secrets(instance, "relay"),
        }
    }


def _gateway(instance: Instance, given: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {
        "gateway": {
            "PSX_GATEWAY_ID": instance.instance_id,
            "PSX_GATEWAY_HTTP_LISTEN": f"0.0.0.0:{GATEWAY_PORTS['http']}",
            "PSX_GATEWAY_SOCKS_LISTEN": f"0.0.0.0:{GATEWAY_PORTS['socks']}",
            "PSX_GATEWAY_PRIVATE_LISTEN": f"0.0.0.0:{PRIVATE_PORTS['gateway']}",
            "PSX_GATEWAY_PROXY_NETWORKS": instance.vpc_network,
            "PSX_GATEWAY_WORKERS": str(max(instance.cpus, 1)),
            "PSX_GATEWAY_DRAIN_MAX_S": "600",
            "PSX_GATEWAY_JOURNAL_DIR": str(STATE / "journal"),
            "PSX_HOUSE_ACCOUNT": given["house-account"],
            "PSX_REDIS_USER": "gateway",
            "PSX_SECRETS": _secrets(instance, "gateway"),
        },
        "prober": {
            **_addresses(given),
            "PSX_PROBE_TARGETS": given["nodes/probe-targets"],
            "PSX_PROBE_TARGET_KEYS": given["nodes/probe-target-keys"],
            "PSX_PROBE_PRIVATE_LISTEN": f"127.0.0.1:{PRIVATE_PORTS['prober']}",
            "PSX_REDIS_USER": "prober",
            "PSX_SECRETS": _secrets(instance, "prober"),
        },
    }


def _target(instance: Instance) -> dict[str, dict[str, str]]:
    return {
        "target": {
            "PSX_TARGET_PLACE": instance.region_name,
            "PSX_TARGET_LISTEN": f"0.0.0.0:{TARGET_PORTS['probe']}",
            "PSX_TARGET_PLAIN_LISTEN": f"0.0.0.0:{TARGET_PORTS['page']}",
            "PSX_SECRETS": _secrets(instance, "target"),
        }
    }


def environment_file(variables: Mapping[str, str]) -> str:
    """Variables as systemd reads them. Source: systemd.exec(5), EnvironmentFile=."""
    escaped = {
        k: v.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("`", "\\`")
        for k, v in variables.items()
    }
    return "".join(f'{name}="{value}"\n' for name, value in escaped.items())


def write(files: Mapping[str, Mapping[str, str]], folder: Path) -> None:
    """Write the settings; nobody but root reads or changes them."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name, variables in files.items():
        path = folder / f"{name}.env"
        path.touch(mode=0o600)
        path.write_text(environment_file(variables))


def install(role: str, units: Path, systemd: Path) -> list[str]:
    """Copy the units of a role where systemd looks; answers their names."""
    names = [f"{name}.service" for name in UNITS[role]]
    for name in names:
        shutil.copy(units / name, systemd / name)
    return names


def figures_of(instance: Instance) -> list[int]:
    """Ports of this node's programs that answer `/metrics`."""
    match instance.role:
        case "relay":
            return [PRIVATE_PORTS["relay"], PRIVATE_PORTS["mesh"]]
        case "gateway":
            first = PRIVATE_PORTS["gateway"]
            workers = range(first, first + max(instance.cpus, 1))
            return [*workers, PRIVATE_PORTS["mesh"], PRIVATE_PORTS["prober"]]
        case _:
            return []


def tell_agent(instance: Instance, folder: Path) -> bool:
    """Say what the CloudWatch agent ships, where the image brought one; answers whether it did."""
    if not folder.is_dir():
        return False
    units = UNITS[instance.role]
    (folder / "amazon-cloudwatch-agent.json").write_text(agent_settings(instance.role, instance.stage, units))
    scraped = scrape_settings(instance.role, instance.instance_id, figures_of(instance))
    (folder / "prometheus.yml").write_text(scraped)
    return True


def observe(environment: Mapping[str, str], metadata: Metadata) -> Instance:
    """This machine. Raises BootRefused."""
    try:
        role = environment["PSX_NODE_ROLE"]
        if role not in UNITS:
            raise BootRefused(f"PSX_NODE_ROLE must be one of {', '.join(UNITS)}")
        return Instance(
            role=role,
            stage=environment["PSX_NODE_STAGE"],
            home_region=environment["PSX_NODE_HOME_REGION"],
            region=metadata.get("placement/region"),
            region_name=environment["PSX_NODE_REGION_NAME"],
            region_number=int(environment["PSX_NODE_REGION_NUMBER"]),
            instance_id=metadata.get("instance-id"),
            private_address=metadata.get("local-ipv4"),
            vpc_network=metadata.get(f"network/interfaces/macs/{metadata.get('mac')}/vpc-ipv4-cidr-block"),
            public_address=metadata.get("public-ipv4"),
            cpus=os.cpu_count() or 1,
            stack=environment["PSX_NODE_STACK"],
            group=environment["PSX_NODE_GROUP"],
            group_name=environment["PSX_NODE_GROUP_NAME"],
        )
    except KeyError as error:
        raise BootRefused(f"user data does not say {error.args[0]}") from None


def main() -> int:
    """Make this machine a node; answers the exit status."""
    import boto3  # noqa: PLC0415 - the rules above are read without it

    try:
        instance = observe(os.environ, Metadata())
        given = {}
        if READS[instance.role]:
            given = parameters(boto3.client("ssm", region_name=instance.home_region), instance.stage)
        write(settings(instance, given), SETTINGS)
    except (BootRefused, OSError, ValueError) as refused:
        sys.stderr.write(json.dumps({"event": "not a node", "reason": str(refused)}) + "\n")
        return 2
    names = install(instance.role, Path(__file__).parent / "units", SYSTEMD)
    commands = [["daemon-reload"], ["enable", "--now", "--no-block", *names]]
    if tell_agent(instance, AGENT):
        commands.append(["restart", "--no-block", "amazon-cloudwatch-agent"])
    for command in commands:
        subprocess.run(["systemctl", *command], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
