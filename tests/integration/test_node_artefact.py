"""The artefact starts a relay, a gateway and the controller's command from nothing but itself, and is reproducible."""

import asyncio
import zipfile
from pathlib import Path

import pytest

from local import lab
from local.node_artefact import NodeArtefact, build_artefact
from local.packaging import interpreter
from local.supervisor import clean_environment
from shared.runtime.dynamo import SyncDynamo
from tests.support.dataplane import MESH_TOKEN, until
from tests.support.gateway import free_port
from tests.support.packages import runtime_version
from tests.support.stores import PREFIX

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
START_MAX_S = 30.0


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> NodeArtefact:
    return build_artefact(tmp_path_factory.mktemp("artefact"), runtime_version())


@pytest.fixture(scope="module")
def unpacked(artefact: NodeArtefact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("opt")
    with zipfile.ZipFile(artefact.path) as archive:
        archive.extractall(folder)
    return folder


async def start(
    folder: Path, module: list[str], settings: dict[str, str], log: Path
) -> asyncio.subprocess.Process:
    """A program of the artefact: an interpreter without packages, in a folder without files."""
    empty = log.parent / "empty"
    empty.mkdir(exist_ok=True)
    with log.open("wb") as output:
        return await asyncio.create_subprocess_exec(
            str(interpreter(runtime_version())),
            *("-S", "-s", "-m", *module),
            cwd=empty,
            env={**clean_environment(), "PYTHONPATH": str(folder), **settings},
            stdout=output,
            stderr=output,
        )


async def test_relay_and_gateway_start(
    unpacked: Path,
    dynoxide: SyncDynamo,
    dynoxide_url: str,
    valkey_url: str,
    lab_files: lab.LabFiles,
    tmp_path: Path,
) -> None:
    common = {
        "PSX_STAGE": "local",
        "PSX_TABLE_PREFIX": PREFIX,
        "PSX_REDIS_URL": valkey_url,
        "PSX_MESH_TOKEN": MESH_TOKEN,
        "AWS_ENDPOINT_URL_DYNAMODB": dynoxide_url,
        "AWS_ACCESS_KEY_ID": "t",
        "AWS_SECRET_ACCESS_KEY": "t",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }
    relay = {
        "PSX_RELAY_ID": "r",
        "PSX_RELAY_REGION": "eu",
        **{f"PSX_RELAY_{name}_LISTEN": f"127.0.0.1:{free_port()}" for name in ("PEER", "MESH", "PRIVATE")},
        "PSX_RELAYS": lab.relays_setting({"eu": 1, "us": 2}),
        "PSX_JWT_PUBLIC_KEY": lab.fresh_secrets().jwt_public,
        "PSX_ASN_MMDB": str(lab_files.asn_mmdb),
        "PSX_COUNTRY_MMDB": str(lab_files.country_mmdb),
    }
    gateway = {
        "PSX_GATEWAY_ID": "g",
        **{f"PSX_GATEWAY_{name}_LISTEN": f"127.0.0.1:{free_port()}" for name in ("HTTP", "SOCKS", "PRIVATE")},
        "PSX_SECRET_PEPPER": "00" * 32,
        "PSX_SEALING_KEY": "00" * 32,
    }
    logs = {name: tmp_path / f"{name}.log" for name in ("relay", "gateway")}
    running = [
        await start(unpacked, ["relay_node"], common | relay, logs["relay"]),
        await start(unpacked, ["gateway_node"], common | gateway, logs["gateway"]),
    ]
    try:
        for name, log in logs.items():
            await until(lambda n=name, p=log: f"{n} ready" in p.read_text(), START_MAX_S)  # type: ignore[misc]
    finally:
        for process in running:
            process.terminate()
        ends = [await process.wait() for process in running]
    assert ends == [0, 0]


async def test_the_controller_and_the_nodes_own_programs_are_in_it(unpacked: Path, tmp_path: Path) -> None:
    process = await start(unpacked, ["infra.mesh", "--help"], {}, tmp_path / "mesh.log")
    assert await process.wait() == 0
    assert "remove" in (tmp_path / "mesh.log").read_text()
    for module in ("boot", "lifecycle"):
        assert (unpacked / "infra" / "nodes" / f"{module}.py").exists()
    assert len(list((unpacked / "infra" / "nodes" / "units").iterdir())) == 7
    for service in ("autoscaling", "cloudformation", "dynamodb", "s3", "secretsmanager", "ssm"):
        assert (unpacked / "botocore" / "data" / service).is_dir()


def test_it_holds_no_chain_code_and_no_functions(unpacked: Path) -> None:
    assert not (unpacked / "functions").exists()
    assert not (unpacked / "shared" / "chain").exists()
    assert not (unpacked / "local").exists()


def test_the_same_sources_give_the_same_version(artefact: NodeArtefact, tmp_path: Path) -> None:
    again = build_artefact(tmp_path, runtime_version())
    assert again.version == artefact.version
    assert again.path.name == f"{again.version}.zip"
