"""What is uploaded is what runs: each function answers from its unpacked zip, with nothing else to import from."""

import re
import shutil
from pathlib import Path

import pytest

from local.client import call
from local.goods import put_goods
from local.lambda_runtime import Code
from local.network import LocalNetwork
from local.packaging import (
    UNZIPPED_BOUND_MB,
    Artefact,
    PackageFailed,
    build,
    import_alone,
    interpreter,
    unpack,
)
from tests.support.packages import RUNTIME_LOCK, environment_of, runtime_version

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

RUNTIME_GLIBC = 34  # Amazon Linux 2023, which python3.12 of Lambda stands on
GLIBC = re.compile(rb"\0GLIBC_2\.(\d+)\0")


@pytest.fixture(scope="module")
def unpacked(artefacts: list[Artefact], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {a.function: unpack(a, tmp_path_factory.mktemp(a.function)) for a in artefacts}


def test_each_handler_imports_from_its_package_and_the_standard_library_alone(
    artefacts: list[Artefact], unpacked: dict[str, Path]
) -> None:
    library = str(Path(str(interpreter(runtime_version()))).resolve().parent.parent)
    for artefact in artefacts:
        folder = unpacked[artefact.function]
        found = import_alone(folder, artefact.handler, runtime_version())
        assert [f for f in found.files if not f.startswith((str(folder), library, "<"))] == []


def test_a_handler_that_lacks_something_is_named(artefacts: list[Artefact], tmp_path: Path) -> None:
    folder = unpack(next(a for a in artefacts if a.function == "list-exits"), tmp_path)
    shutil.rmtree(folder / "pydantic_settings")
    with pytest.raises(PackageFailed, match=r"functions\.jobs\.list_exits\.handler: .*'pydantic_settings'"):
        import_alone(folder, "functions.jobs.list_exits.handler", runtime_version())


def test_a_package_holds_no_chain_sdk_unless_it_reads_chains_and_no_source_of_another_process(
    artefacts: list[Artefact], unpacked: dict[str, Path]
) -> None:
    for artefact in artefacts:
        folder, kind = unpacked[artefact.function], artefact.handler.split(".")[1]
        assert (folder / "web3").exists() == (folder / "shared" / "chain").exists() == (kind == "x402")
        assert sorted(p.name for p in (folder / "functions").iterdir() if p.is_dir()) in (
            ["__pycache__", kind],
            [kind],
        )
        assert not [n for n in ("relay_node", "gateway_node", "local", "tests") if (folder / n).exists()]


def test_packages_are_compiled_for_the_runtime_and_need_no_newer_glibc_than_it_has(
    unpacked: dict[str, Path],
) -> None:
    tag = f"cpython-{runtime_version().replace('.', '')}"
    for folder in unpacked.values():
        sources = list((folder / "shared").rglob("*.py"))
        assert sources
        assert all(list((p.parent / "__pycache__").glob(f"{p.stem}.{tag}.pyc")) for p in sources)
        extensions = [p for p in folder.rglob("*.so") if "cpython-3" in p.name]
        assert extensions
        assert [p.name for p in extensions if f"{tag}-x86_64" not in p.name] == []
        needed = {int(n) for p in folder.rglob("*.so*") for n in GLIBC.findall(p.read_bytes())}
        assert needed
        assert max(needed) <= RUNTIME_GLIBC


def test_the_same_sources_and_locks_give_the_same_bytes(artefacts: list[Artefact], tmp_path: Path) -> None:
    first = next(a for a in artefacts if a.function == "list-exits")
    (again,) = build(tmp_path, runtime_version(), only=["list-exits"])
    assert again.path != first.path
    assert again.sha256 == first.sha256


def test_a_package_beyond_its_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UNZIPPED_BOUND_MB, "jobs", 1)
    with pytest.raises(PackageFailed, match=r"list-exits: .* 1 are allowed"):
        build(tmp_path, runtime_version(), only=["list-exits"])


async def test_each_packaged_function_answers_real_events(unpacked: dict[str, Path]) -> None:
    python = environment_of("lambda", RUNTIME_LOCK, runtime_version())
    net = LocalNetwork()
    try:
        await net.start_stores_and_chains()
        await net.start_cloud({name: Code(python, folder) for name, folder in unpacked.items()})
        reports = {}
        for name in net.cloud.schedules:
            reports[name] = await net.cloud.fire(name)
            assert isinstance(reports[name], dict), name
            assert not reports[name].get("refused"), (name, reports[name])
        assert reports["validate_sale"]["ok"] is True
        stock = await call(f"{net.api_url}/v1/gateway/pool/stock")
        assert stock.status == 200
        put_goods(net.redis)
        offer = await call(f"{net.api_url}/v1/x402/pool?traffic=0.1")
        assert offer.status == 402, offer
    finally:
        await net.close()
