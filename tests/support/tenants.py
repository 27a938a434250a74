"""Furnished tenants in a moment: what stores hold after the first furnishing is put back for every later test.

Furnishing takes two dozen requests, and a test of one route needs it as much as the next one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest
import redis

from local import lab
from local.bootstrap import Keys
from shared.runtime.dynamo import SyncDynamo
from tests.support.functions import Functions
from tests.support.routes import Tenant
from tests.support.stores import moto_backend

FRESH_S: Final = 60.0
"""Older memories are not used: sign-ins and presence in them would be about to expire."""

Tenancy = Callable[..., list[Tenant]]


@dataclass(frozen=True)
class _Memory:
    made_s: float
    begun: tuple[lab.LabSecrets, Keys]
    tables: Any
    keys: list[tuple[bytes, int, bytes]]
    tenants: list[Tenant]


_memories: dict[tuple[str, ...], _Memory] = {}


@pytest.fixture
def tenancy(dynamo: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles) -> Iterator[Tenancy]:
    """`tenancy("one", "two")`: these tenants, furnished, on stores that nobody else uses."""
    made: list[Functions] = []

    def furnished(*names: str) -> list[Tenant]:
        memory = _memories.get(names)
        if memory is not None and time.monotonic() - memory.made_s < FRESH_S:
            functions = Functions(dynamo, valkey_url, lab_files, begun=memory.begun)
            made.append(functions)
            moto_backend().tables = copy.deepcopy(memory.tables)
            with redis.Redis.from_url(valkey_url) as client:
                for key, left_ms, value in memory.keys:
                    client.restore(key, max(left_ms, 0), value)
            return [replace(tenant, functions=functions) for tenant in memory.tenants]
        functions = Functions(dynamo, valkey_url, lab_files)
        made.append(functions)
        tenants = [Tenant(functions, name).furnish() for name in names]
        with redis.Redis.from_url(valkey_url) as client:
            keys = [(key, int(client.pttl(key)), bytes(client.dump(key))) for key in client.scan_iter()]
        begun = functions.secrets, functions.keys
        tables = copy.deepcopy(moto_backend().tables)
        _memories[names] = _Memory(time.monotonic(), begun, tables, keys, tenants)
        return tenants

    yield furnished
    for functions in made:
        functions.close()
