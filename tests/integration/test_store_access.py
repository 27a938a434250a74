"""What requests ask of DynamoDB: keys and bounded pages, never a scan, on any route and in the gateway."""

from typing import Any

import pytest
from botocore.endpoint import Endpoint

from shared.pool.live import publish_revoke_pak
from shared.runtime.dynamo import AsyncDynamo, DynamoRequest
from tests.support.dataplane import Plane, echo
from tests.support.functions import Functions
from tests.support.routes import documented
from tests.support.tenants import Tenancy

pytestmark = pytest.mark.slow
ROWS_MAX = 3_660
"""Ten years of a device's days are the longest that one query reads."""
OPERATIONS_MAX = 80
"""Of one request: an account's 50 API keys are read one by one, and that is the longest there is."""
PUBLIC_SALE = (
    "/v1/x402/pool/pricing",
    "/v1/x402/pricing",
    "/v1/x402/countries",
    "/v1/x402/pool?country=us&traffic=0.1",
    "/v1/x402/proxy?country=us&traffic=0.1&tier=private",
    "/v1/x402/manage/pool/credit",
    "/v1/x402/sessions/wallet/0x" + "11" * 20,
    "/v1/x402/sessions/none/status",
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """(operation, its parameters) of everything that any client of this process sends."""
    import json

    found: list[tuple[str, dict[str, Any]]] = []
    send = Endpoint.make_request

    def recorded(self: Any, operation_model: Any, request_dict: Any) -> Any:
        body = request_dict.get("body") or b"{}"
        found.append((operation_model.name, json.loads(body)))
        return send(self, operation_model, request_dict)

    monkeypatch.setattr(Endpoint, "make_request", recorded)
    return found


def check(asked: list[tuple[str, dict[str, Any]]]) -> None:
    names = {name for name, _ in asked}
    assert not names & {"Scan", "ExecuteStatement", "BatchExecuteStatement", "DescribeTable"}, names
    for name, params in asked:
        if name == "Query":
            assert 0 < params["Limit"] <= ROWS_MAX
            assert "FilterExpression" not in params
    assert len(asked) <= OPERATIONS_MAX


@pytest.mark.parametrize(("method", "path"), documented())
def test_no_route_of_the_api_scans(
    tenancy: Tenancy, asked: list[tuple[str, dict[str, Any]]], method: str, path: str
) -> None:
    (tenant,) = tenancy("one")
    headers = tenant.headers(path)
    asked.clear()
    assert tenant.call(method, path, headers=headers).status in {200, 202}
    check(asked)


def test_no_route_of_the_sale_scans(functions: Functions, asked: list[tuple[str, dict[str, Any]]]) -> None:
    functions.open()
    for path in PUBLIC_SALE:
        asked.clear()
        functions.call(path)
        check(asked)


async def test_the_gateway_reads_rows_by_their_keys_alone(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[DynamoRequest[Any]] = []
    run = AsyncDynamo.run

    async def recorded(self: AsyncDynamo, request: DynamoRequest[Any]) -> Any:
        found.append(request)
        return await run(self, request)

    monkeypatch.setattr(AsyncDynamo, "run", recorded)
    await plane.add_peer("p1")
    port = await plane.target(echo)
    reader, writer = await plane.tunnel(port)
    writer.write(b"x" * 1000)
    await reader.readexactly(1000)
    await plane.meter.flush()
    _, refused, head = await plane.connect(port, secret="pak_" + "0" * 24)
    assert " 407 " in head
    await plane.redis.run(publish_revoke_pak(plane.auth.known().copy().pop()))
    assert {request.operation for request in found} <= {"get_item", "put_item"}
    assert len(found) >= 3
    for one in (writer, refused):
        one.close()
