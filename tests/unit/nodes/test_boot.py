"""What a machine is told at its start is what its programs read; what the image fetches is what was named."""

import hashlib
import inspect
import json
import re
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from gateway_node.prober.settings import ProberSettings
from gateway_node.prober.target import TargetSettings
from gateway_node.settings import GatewaySettings
from infra.mesh.settings import MeshSettings
from infra.nodes import boot, lifecycle
from infra.nodes.boot import (
    READS,
    BootRefused,
    Instance,
    Metadata,
    environment_file,
    install,
    observe,
    parameters,
    settings,
)
from local.configure import PROBE_TARGETS, PUBLISHED, fresh_values, parameter_names
from local.configure import SECRETS as CONFIGURED
from local.deployment_files import EXPOSURE_MAX, NODES, user_data
from local.paths import ROOT
from relay_node.settings import RelaySettings
from tests.support.lab import pem_keys

USER_DATA_MAX_BYTES = 16 * 1024
UNITS = NODES / "units"
FRESH = fresh_values()
SECRETS = {
    f"psx/dev/{secret}": {name: FRESH[name] for name in CONFIGURED[secret]}
    for secret in (
        "mesh",
        "credentials",
        "modems",
        "probe-target",
        "probe-asking",
        "cache-relay",
        "cache-gateway",
        "cache-prober",
    )
}
TARGETS = json.dumps(
    [
        {"place": place, "name": "probe.example", "address": address, "port": 443, "plainPort": 80}
        for place, address in (("eu", "203.0.113.9"), ("us", "203.0.113.10"))
    ]
)
RELAYS = json.dumps({"eu": {"url": "wss://relay.example/", "countries": ["*"]}})


def instance(role: str) -> Instance:
    return Instance(
        role, "dev", "eu-central-1", "eu-central-1", "eu", 0, "i-0123456789abcdef0", "10.40.0.9", "10.40.0.0/16",
        "198.51.100.9", 2, "psx-dev-relays", "Fleet", f"psx-dev-{role}s",
    )  # fmt: skip


def given() -> dict[str, str]:
    return {
        "network/redis-url": "rediss://cache.example:6379/0",
        "relays": RELAYS,
        "house-account": "psx_x402pool",
        "nodes/jwt-public-key": pem_keys()[1],
        "nodes/ip-data-bucket": "bucket",
        "nodes/probe-targets": TARGETS,
        "nodes/probe-target-keys": pem_keys()[1],
    }


def sourced(path: Path) -> dict[str, str]:
    """The variables that a POSIX shell reads from a file: systemd's rules for quotes are the same."""
    ask = 'set -a; . "$1"; exec "$2" -c "import os, json; print(json.dumps(dict(os.environ)))"'
    done = subprocess.run(
        ["sh", "-c", ask, "sh", str(path), sys.executable], env={}, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("role", "name", "kind"),
    [
        ("relay", "relay", RelaySettings),
        ("gateway", "gateway", GatewaySettings),
        ("gateway", "prober", ProberSettings),
        ("target", "target", TargetSettings),
        ("relay", "mesh", MeshSettings),
        ("gateway", "mesh", MeshSettings),
    ],
)
def test_a_program_starts_from_its_files_and_its_secrets(
    role: str, name: str, kind: type[BaseSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot.write(settings(instance(role), given()), tmp_path)
    (tmp_path / "run.env").write_text("PSX_RELAY_MESH_LISTEN=10.96.0.7:7443\n")  # the controller writes it
    variables: dict[str, str] = {}
    for file in ("node", name, "run"):
        variables |= sourced(tmp_path / f"{file}.env")
    named = variables.pop("PSX_SECRETS", "")
    for secret in filter(None, named.split(",")):
        variables |= SECRETS[secret]
    for variable, value in variables.items():
        if variable.startswith("PSX_"):
            monkeypatch.setenv(variable, value)
    assert kind()  # whatever it needs is set
    known = {f"PSX_{field.upper()}" for field in kind.model_fields}
    own = set(settings(instance(role), given())[name]) - {"PSX_SECRETS"}
    assert own <= known


def test_no_settings_file_holds_a_secret_and_no_one_else_reads_them(tmp_path: Path) -> None:
    for role in boot.UNITS:
        boot.write(settings(instance(role), given()), tmp_path)
    names = {variable for values in SECRETS.values() for variable in values}
    for path in tmp_path.iterdir():
        assert not names & set(sourced(path))
        assert path.stat().st_mode & 0o077 == 0


def test_values_survive_quoting(tmp_path: Path) -> None:
    odd = {"A": '{"a": "b c"}', "B": "$HOME `id` \\n", "C": "two\nlines"}
    (tmp_path / "odd.env").write_text(environment_file(odd))
    found = sourced(tmp_path / "odd.env")
    assert {name: found[name] for name in odd} == odd


def test_what_is_missing_is_named() -> None:
    without = {k: v for k, v in given().items() if k not in {"house-account", "nodes/probe-targets"}}
    with pytest.raises(BootRefused, match="house-account, nodes/probe-targets"):
        settings(instance("gateway"), without)


@pytest.mark.parametrize("role", boot.UNITS)
def test_a_role_reads_the_parameters_that_it_names_and_no_others(role: str) -> None:
    names: set[str] = set()

    class Read(dict[str, str]):
        def __getitem__(self, name: str) -> str:
            names.add(name)
            return super().__getitem__(name)

    settings(instance(role), Read(given()))
    assert names == READS[role]


def test_what_nodes_read_is_written_by_configure_or_by_a_stack_and_the_other_way_round() -> None:
    template = (ROOT / "serverless.yml").read_text()
    stacks = set(re.findall(r"/psx/\$\{sls:stage\}/(nodes/[a-z-]+)", template))
    read = {name for names in READS.values() for name in names if name.startswith("nodes/")}
    assert read == {PROBE_TARGETS, *PUBLISHED} | stacks
    assert {PROBE_TARGETS, *PUBLISHED}.isdisjoint(stacks)
    others = {name for names in READS.values() for name in names} - read
    network = re.findall(r"/psx/\$\{Stage\}/(network/[a-z-]+)", (ROOT / "infra" / "network.yml").read_text())
    assert others <= {*parameter_names(), *network}


def test_a_node_reads_no_secret_that_another_role_alone_needs() -> None:
    assert not set(boot.SECRETS["target"]) & {*boot.SECRETS["relay"], *boot.SECRETS["gateway"]}
    assert set(boot.SECRETS["relay"]) == {"mesh", "cache-relay"}
    for role in boot.UNITS:
        for program, written in settings(instance(role), given()).items():
            names = ",".join(f"psx/dev/{name}" for name in boot.SECRETS.get(program, ()))
            assert written.get("PSX_SECRETS", "") == names
            assert written.get("PSX_REDIS_USER") in {None, program}


@pytest.mark.parametrize("role", boot.UNITS)
def test_the_end_of_a_node_knows_from_its_files_what_it_needs(role: str) -> None:
    source = inspect.getsource(lifecycle)
    needed = {
        f"PSX_NODE_{name}" for name in re.findall(r'"([A-Z]+)"', source.partition("for name in (")[2][:60])
    }
    needed |= set(re.findall(r'environment\[f?"(PSX_NODE_[A-Z_]+)"\]', source))
    assert needed >= {"PSX_NODE_ROLE", "PSX_NODE_INSTANCE", "PSX_NODE_GROUP_NAME"}
    assert set(settings(instance(role), given())["lifecycle"]) == needed


def test_every_unit_is_of_a_role_and_has_a_kept_score(tmp_path: Path) -> None:
    written = {path.stem for path in UNITS.iterdir()}
    assert written == {name for names in boot.UNITS.values() for name in names} == set(EXPOSURE_MAX)
    assert sorted(install("relay", UNITS, tmp_path)) == sorted(p.name for p in tmp_path.iterdir())


def test_a_unit_reads_the_files_that_are_written_for_it() -> None:
    for role in boot.UNITS:
        written = {f"/etc/psx/{name}.env" for name in settings(instance(role), given())} | {
            "/run/psx/mesh.env"
        }
        for name in boot.UNITS[role]:
            lines = (UNITS / f"{name}.service").read_text().splitlines()
            read = {line.partition("=")[2] for line in lines if line.startswith("EnvironmentFile=")}
            assert read <= written


def test_all_pages_of_parameters_are_read() -> None:
    class Pages:
        def get_parameters_by_path(self, **asked: Any) -> dict[str, Any]:
            if "NextToken" not in asked:
                return {"Parameters": [{"Name": "/psx/dev/a", "Value": "1"}], "NextToken": "more"}
            return {"Parameters": [{"Name": "/psx/dev/network/b", "Value": "2"}]}

    assert parameters(Pages(), "dev") == {"a": "1", "network/b": "2"}


@pytest.fixture
def metadata() -> Any:
    """A metadata service that answers only who has its token."""

    class Service(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.answer(200 if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else 400, "token-1")

        def do_GET(self) -> None:
            allowed = self.headers["X-aws-ec2-metadata-token"] == "token-1"
            self.answer(200 if allowed else 401, self.path.rpartition("/")[2])

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Service)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield Metadata(f"http://127.0.0.1:{server.server_port}/latest/")
    server.shutdown()
    server.server_close()


def test_user_data_says_what_the_start_reads(metadata: Metadata) -> None:
    files = {f["path"]: f["content"] for f in yaml.safe_load(user_data())["write_files"]}
    said = dict(line.split("=", 1) for line in files["/etc/psx/instance.env"].splitlines())
    found = observe({**said, "PSX_NODE_ROLE": "relay"}, metadata)
    assert (found.instance_id, found.public_address) == ("instance-id", "public-ipv4")
    assert found.vpc_network == "vpc-ipv4-cidr-block"
    with pytest.raises(BootRefused, match="PSX_NODE_STAGE"):
        observe({"PSX_NODE_ROLE": "relay"}, metadata)
    with pytest.raises(BootRefused, match="one of relay, gateway, target"):
        observe({**said, "PSX_NODE_ROLE": "other"}, metadata)


def test_user_data_fits() -> None:
    assert len(user_data().encode()) < USER_DATA_MAX_BYTES


@pytest.mark.parametrize("altered", [False, True])
def test_an_artefact_that_is_not_what_was_named_is_not_unpacked(tmp_path: Path, altered: bool) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("relay_node/__main__.py", "")
    version = hashlib.sha256((tmp_path / "a.zip").read_bytes()).hexdigest()
    files = {f["path"]: f["content"] for f in yaml.safe_load(user_data())["write_files"]}
    script = files["/usr/local/sbin/psx-fetch"].replace("/opt/psx", str(tmp_path / "opt"))
    script = script.replace(
        '"1", "1", "1"', f'"{"0" * 64 if altered else version}", "bucket", "eu-central-1"'
    )
    fake = f"import shutil\nclass C:\n def download_file(s, b, k, p): shutil.copy({str(tmp_path / 'a.zip')!r}, p)\n"
    (tmp_path / "boto3.py").write_text(f"{fake}def client(name, region_name): return C()\n")
    for _ in range(2):  # a second start changes nothing
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) is altered
    current = tmp_path / "opt" / "current"
    assert (current / "relay_node" / "__main__.py").exists() is not altered
