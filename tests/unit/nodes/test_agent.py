"""What is shipped exists, what alarms look at is shipped, and every alarm names a page that says what to do."""

import json
import re

import pytest

from infra.nodes import boot
from infra.nodes.agent import BY_LABEL, FIGURES, agent_settings, scrape_settings
from infra.nodes.boot import Instance, figures_of, tell_agent
from local.deployment_files import NODES
from local.paths import ROOT
from tests.support.templates import Template

ALARM = "AWS::CloudWatch::Alarm"
DEFINED = re.compile(r"\b(Gauge|Counter|Histogram|Tallies|level)\(\s*\"(psx_[a-z_]+)\"(.*?)\)\n", re.S)


def instance(role: str, cpus: int = 2) -> Instance:
    return Instance(
        role, "dev", "r", "r", "eu", 0, "i-1", "10.0.0.1", "10.0.0.0/16", "192.0.2.1", cpus, "s", "Fleet", "g"
    )


def defined() -> dict[str, str]:
    """Figures as `/metrics` names them -> how they are defined."""
    folders = ("gateway_node", "relay_node", "infra", "shared")
    texts = [path.read_text("utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = [match for text in texts for match in DEFINED.findall(text)]
    return {f"{name}_total" if kind in {"Counter", "Tallies"} else name: rest for kind, name, rest in found}


def shipped() -> set[str]:
    return {name for names in FIGURES.values() for name in names} | set(BY_LABEL)


def test_every_figure_that_is_shipped_is_counted_somewhere_under_that_name_and_label() -> None:
    known = defined()
    assert {name for name in shipped() if name.startswith("psx_")} <= set(known)
    assert all(f'"{label}"' in known[name] for name, label in BY_LABEL.items())


@pytest.mark.parametrize("role", boot.UNITS)
def test_every_alarm_looks_at_what_is_shipped_and_names_a_section_that_says_what_to_do(role: str) -> None:
    given = {"Role": role, "Stage": "dev", "AlarmsTopic": "topic"}
    alarms = Template(NODES / "nodes.yml", given).resources(ALARM).values()
    page = (ROOT / "docs" / "operations" / "nodes.md").read_text("utf-8")
    assert alarms
    for alarm in alarms:
        metrics = [m["MetricStat"]["Metric"] for m in alarm.get("Metrics", []) if "MetricStat" in m] or [
            alarm
        ]
        own = [m for m in metrics if m["Namespace"] == "psx/dev/nodes"]
        assert {m["MetricName"] for m in own} <= shipped()
        assert all(m["Dimensions"] == [{"Name": "role", "Value": role}] for m in own)
        assert alarm["AlarmActions"] == ["topic"]
        (section,) = re.findall(r'docs/operations/nodes\.md, "(.+)"', alarm["AlarmDescription"])
        assert f"## {section}\n" in page


@pytest.mark.parametrize("role", boot.UNITS)
def test_the_agent_ships_the_log_of_every_unit_to_the_group_that_the_stack_makes(role: str) -> None:
    told = json.loads(agent_settings(role, "dev", boot.UNITS[role]))["logs"]
    logs = {entry["file_path"]: entry for entry in told["logs_collected"]["files"]["collect_list"]}
    written = {
        line.partition("append:")[2]
        for unit in boot.UNITS[role]
        for line in (NODES / "units" / f"{unit}.service").read_text().splitlines()
        if line.startswith("StandardError=append:")
    }
    assert set(logs) == written
    (group,) = (
        Template(NODES / "nodes.yml", {"Role": role, "Stage": "dev"})
        .resources("AWS::Logs::LogGroup")
        .values()
    )
    figures = told["metrics_collected"]["prometheus"]
    groups = {entry["log_group_name"] for entry in logs.values()} | {figures["log_group_name"]}
    assert groups == {group["LogGroupName"]}


def test_every_program_that_counts_is_asked_every_worker_too() -> None:
    assert figures_of(instance("relay")) == [9100, 9101]
    assert figures_of(instance("gateway", cpus=4)) == [9110, 9111, 9112, 9113, 9101, 9102]
    asked = json.loads(scrape_settings("gateway", "i-1", [9110]))
    assert asked["scrape_configs"][0]["static_configs"][0]["labels"] == {"role": "gateway", "node": "i-1"}


def test_a_node_without_the_agent_starts_all_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("agent")
    assert not tell_agent(instance("relay"), folder / "missing")
    assert tell_agent(instance("relay"), folder)
    assert {path.name for path in folder.iterdir()} == {"amazon-cloudwatch-agent.json", "prometheus.yml"}
