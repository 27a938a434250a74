"""`python -m local.deployment_files`, a part of `./psx check`: templates, units, user data, scripts, each by its tool.

cfn-lint comes with the project; shellcheck, systemd-analyze and cloud-init are the machine's. One that is missing is told
on a laptop, and a failure in CI. Units are held to a kept score: how exposed systemd says they are.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from local.paths import ROOT

NODES: Final = ROOT / "infra" / "nodes"
TEMPLATES: Final = (ROOT / "infra" / "network.yml", NODES / "nodes.yml", NODES / "image.yml")
SCRIPTS: Final = (ROOT / ".ci" / "run",)
EXPOSURE_MAX: Final[Mapping[str, float]] = {
    "psx-firewall": 1.6,
    "psx-gateway": 1.4,
    "psx-lifecycle": 1.8,
    "psx-mesh": 2.0,
    "psx-prober": 1.4,
    "psx-relay": 1.4,
    "psx-target": 1.4,
}
"""What `systemd-analyze security` says of each unit, 0 (nothing exposed) to 10. May fall, not rise."""
TOOL_TIMEOUT_S: Final = 60
_PLACEHOLDER: Final = re.compile(r"\$\{([^}!]+)\}")
_NODES_OWN: Final = (("/usr/bin/python3.12", sys.executable), ("/usr/sbin/nft", "/bin/true"))


class _CloudFormation(yaml.SafeLoader):
    """YAML with CloudFormation's tags, which are read as what they hold."""


def _inner(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)  # type: ignore[arg-type]


_CloudFormation.add_multi_constructor("!", _inner)


def user_data() -> str:
    """The cloud-config of a node, with every parameter filled in with a 1."""
    template = yaml.load((NODES / "nodes.yml").read_text("utf-8"), _CloudFormation)  # noqa: S506 - a safe loader
    text: str = template["Resources"]["Template"]["Properties"]["LaunchTemplateData"]["UserData"][
        "Fn::Base64"
    ]
    return _PLACEHOLDER.sub("1", text)


def templates() -> list[str]:
    """Faults that cfn-lint finds."""
    linter = str(Path(sys.executable).parent / "cfn-lint")
    return _faults([linter, "--regions", "eu-central-1", "--", *map(str, TEMPLATES)])


def scripts() -> list[str]:
    """Faults that shellcheck finds."""
    return _faults(["shellcheck", *map(str, SCRIPTS)])


def cloud_config() -> list[str]:
    """Faults that cloud-init finds in user data."""
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        file.write(user_data())
        file.flush()
        return _faults(["cloud-init", "schema", "--config-file", file.name])


def units() -> list[str]:
    """Faults that systemd finds; it says them on stderr with status 0. Then the kept scores."""
    with tempfile.TemporaryDirectory() as folder:
        files = [_on_this_machine(path, Path(folder)) for path in sorted((NODES / "units").iterdir())]
        done = _run(["systemd-analyze", "verify", "--man=no", *map(str, files)])
        found = done.stderr.strip().splitlines()
        for file in files:
            bound = EXPOSURE_MAX.get(file.stem)
            if bound is None:
                found.append(f"{file.name}: has no kept score")
                continue
            command = [
                "systemd-analyze",
                "security",
                "--offline=true",
                f"--threshold={round(bound * 10)}",
                str(file),
            ]
            rated = _run(command)
            if rated.returncode:
                found.append(f"{file.name}: more than {bound}: {rated.stdout.strip().splitlines()[-1]}")
    return found


def _on_this_machine(unit: Path, folder: Path) -> Path:
    """A copy whose programs exist here: whether they exist on a node is not what is asked."""
    text = unit.read_text("utf-8")
    for theirs, ours in _NODES_OWN:
        text = text.replace(theirs, ours)
    copy = folder / unit.name
    copy.write_text(text)
    return copy


def _faults(command: Sequence[str]) -> list[str]:
    done = _run(command)
    return (done.stdout + done.stderr).strip().splitlines() if done.returncode else []


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False
    )


CHECKS: Final[tuple[tuple[str, str, Callable[[], list[str]]], ...]] = (
    ("templates", "", templates),
    ("scripts", "shellcheck", scripts),
    ("cloud-config", "cloud-init", cloud_config),
    ("units", "systemd-analyze", units),
)


def main() -> int:
    """Run all; answers the exit status."""
    status = 0
    for name, tool, run in CHECKS:
        if tool and shutil.which(tool) is None:
            sys.stdout.write(f"     {name}: not checked, {tool} is not installed\n")
            status |= os.environ.get("CI") == "true"
            continue
        for fault in run():
            status = 1
            sys.stdout.write(f"     {name}: {fault}\n")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
