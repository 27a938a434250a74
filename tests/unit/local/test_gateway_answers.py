"""What the local API Gateway answers when a function gives nothing: each failure by its own status, as in the cloud."""

import json

from local.api_gateway import ApiGateway
from local.http_server import HttpRequest
from local.lambda_runtime import LocalFunction


async def test_a_function_that_does_not_answer_in_time_is_unavailable_and_no_fault() -> None:
    gateway = ApiGateway({"/v1/": LocalFunction("api", "none", workers=0, timeout_s=0.01)})
    answer = await gateway._serve(HttpRequest("GET", "/v1/x", (), b"", "192.0.2.1"))
    assert (answer.status, json.loads(answer.body)) == (503, {"message": "Service Unavailable"})
    answer = await gateway._serve(HttpRequest("GET", "/elsewhere", (), b"", "192.0.2.1"))
    assert answer.status == 404
