"""What the CloudWatch agent of a node ships: logs of the node's own programs, and the figures that alarms look at.

Pure: settings in, two files out (JSON, which is YAML too). A figure is one series per role and not per node, because each
series is paid for; which node it was stands in the log events that carry the figures. The agent itself comes with the image
(`image.yml`). Source: CloudWatch user guide, "CloudWatch agent configuration with Prometheus".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

SCRAPE_EVERY_S: Final = 60
LOGS: Final = "/var/log/psx"
FIGURES: Final[Mapping[str, tuple[str, ...]]] = {
    "relay": (
        "psx_relay_buffered_bytes",
        "psx_relay_bytes_total",
        "psx_relay_devices",
        "psx_relay_links",
        "psx_relay_sockets",
        "psx_relay_tunnels",
    ),
    "gateway": (
        "psx_gateway_exit_faults_total",
        "psx_gateway_history_dropped_total",
        "psx_gateway_open_tunnels",
        "psx_gateway_refused_total",
        "psx_gateway_tunnels_total",
    ),
    "prober": ("psx_probe_bytes_total",),
    "mesh": (
        "psx_mesh_bad_rows_total",
        "psx_mesh_key_age_seconds",
        "psx_mesh_live_links",
        "psx_mesh_peers",
    ),
    "every process": ("process_open_fds", "process_resident_memory_bytes"),
}
"""Whose figures, as `/metrics` names them."""
BY_LABEL: Final[Mapping[str, str]] = {
    "psx_gateway_refused_total": "code",
    "psx_mesh_rounds_total": "outcome",
    "psx_probes_total": "outcome",
    "psx_relay_ended_total": "reason",
}
"""Figures that are also told apart by one label."""


def agent_settings(role: str, stage: str, units: Sequence[str]) -> str:
    """The agent's own file (JSON), for a node that runs these units."""
    group = f"/psx/{stage}/nodes/{role}"
    programs = [unit.removeprefix("psx-") for unit in units if unit != "psx-firewall"]
    named = sorted(name for names in FIGURES.values() for name in names)
    files = [
        {
            "file_path": f"{LOGS}/{program}.log",
            "log_group_name": group,
            "log_stream_name": f"{{instance_id}}-{program}",
        }
        for program in programs
    ]
    declared = [_declaration(["role"], named)]
    declared += [_declaration(["role", label], [name]) for name, label in BY_LABEL.items()]
    prometheus = {
        "log_group_name": group,
        "prometheus_config_path": "/opt/aws/amazon-cloudwatch-agent/etc/prometheus.yml",
        "emf_processor": {"metric_namespace": f"psx/{stage}/nodes", "metric_declaration": declared},
    }
    collected = {"files": {"collect_list": files}}
    shipped = {"logs_collected": collected, "metrics_collected": {"prometheus": prometheus}}
    return json.dumps({"logs": shipped}, indent=1)


def _declaration(dimensions: list[str], names: Sequence[str]) -> dict[str, Any]:
    return {
        "source_labels": ["job"],
        "label_matcher": "^psx$",
        "dimensions": [dimensions],
        "metric_selectors": [f"^({'|'.join(names)})$"],
    }


def scrape_settings(role: str, node: str, ports: Sequence[int]) -> str:
    """Where the agent asks for figures, as Prometheus is told."""
    targets = {"targets": [f"127.0.0.1:{port}" for port in ports], "labels": {"role": role, "node": node}}
    scraped = [{"job_name": "psx", "static_configs": [targets]}]
    every = {"scrape_interval": f"{SCRAPE_EVERY_S}s"}
    return json.dumps({"global": every, "scrape_configs": scraped}, indent=1)
