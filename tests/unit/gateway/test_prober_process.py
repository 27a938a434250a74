"""A prober whose work ends by itself is a process that fails: whoever runs it starts it again."""

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from gateway_node.prober import __main__ as process


class Closes:
    """Anything that is opened and closed."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.closed = False

    async def __aenter__(self) -> "Closes":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed = True

    async def close(self) -> None:
        self.closed = True


async def test_a_prober_whose_work_ends_by_itself_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        return None

    class Broken:
        def __init__(self, parts: Any) -> None:
            self.parts = parts

        async def run(self) -> None:
            raise ValueError("a row that nobody can read")

    origins = SimpleNamespace(lookup=lambda address: None, close=lambda: None)
    for name, fake in {
        "AsyncRedis": Closes,
        "AsyncDynamo": Closes,
        "Prober": Broken,
        "OriginReader": lambda *_, **__: origins,
        "first_fetch": nothing,
        "follow_bucket": nothing,
    }.items():
        monkeypatch.setattr(process, name, fake)
    key = SecretStr("00" * 32)
    settings: Any = SimpleNamespace(
        redis_url="",
        redis_login=lambda: None,
        ip_data_bucket="",
        asn_mmdb=None,
        country_mmdb=None,
        asn_classes=None,
        probe_ca_file=None,
        table=str,
        sealing_key=key,
        secret_pepper=key,
        mesh_token=key,
        targets=tuple,
        probe_target_keys="",
        probe_asking_key=key,
        probe_concurrency=1,
        probe_private_listen="",
    )
    with pytest.raises(RuntimeError, match="by itself") as failed:
        await process.serve(settings)
    assert isinstance(failed.value.__cause__, ValueError)
