"""API Gateway's HTTP API in front of the local functions: real payload format 2.0 events in, its answers out.

Routes stand in serverless.yml. `requestContext.http.sourceIp` is the address of the caller's socket, as in the cloud.
Source: AWS API Gateway developer guide, "Working with AWS Lambda proxy integrations for HTTP APIs".
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

from local.http_server import HttpAnswer, HttpRequest, serve_http
from local.lambda_runtime import FunctionFailed, FunctionTimedOut, LocalFunction


class ApiGateway:
    """Routes requests to functions by the longest matching prefix."""

    def __init__(self, routes: Mapping[str, LocalFunction]) -> None:
        self._routes = sorted(routes.items(), key=lambda route: -len(route[0]))
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen."""
        self._server = await serve_http(host, port, self._serve)

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, request: HttpRequest) -> HttpAnswer:
        path = request.target.partition("?")[0]
        function = next((f for prefix, f in self._routes if path.startswith(prefix)), None)
        if function is None:
            return _said(404, "Not Found")
        try:
            return _answer(await function.invoke(http_event(request)))
        except FunctionTimedOut:
            return _said(503, "Service Unavailable")
        except FunctionFailed:
            return _said(500, "Internal Server Error")


def http_event(request: HttpRequest) -> dict[str, Any]:
    """A request as a payload format 2.0 event."""
    path, _, query = request.target.partition("?")
    headers: dict[str, str] = {}
    cookies: list[str] = []
    for name, value in request.headers:
        if name == "cookie":
            cookies += [c.strip() for c in value.split(";")]
        else:
            headers[name] = f"{headers[name]},{value}" if name in headers else value
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        parameters[name] = f"{parameters[name]},{value}" if name in parameters else value
    now = time.time()
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": unquote(path),
        "rawQueryString": query,
        "headers": headers,
        "requestContext": {
            "accountId": "000000000000",
            "apiId": "local",
            "domainName": headers.get("host", "localhost"),
            "domainPrefix": "local",
            "http": {
                "method": request.method,
                "path": unquote(path),
                "protocol": "HTTP/1.1",
                "sourceIp": request.address,
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": secrets.token_urlsafe(12),
            "routeKey": "$default",
            "stage": "$default",
            "time": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now)),
            "timeEpoch": int(now * 1000),
        },
        "isBase64Encoded": False,
    }
    if cookies:
        event["cookies"] = cookies
    if parameters:
        event["queryStringParameters"] = parameters
    if request.body:
        try:
            event["body"] = request.body.decode("utf-8")
        except UnicodeDecodeError:
            event["body"], event["isBase64Encoded"] = base64.b64encode(request.body).decode(), True
    return event


def _said(status: int, message: str) -> HttpAnswer:
    """An answer of the gateway itself."""
    return HttpAnswer(
        status, (("Content-Type", "application/json"),), json.dumps({"message": message}).encode()
    )


def _answer(result: Any) -> HttpAnswer:
    """A function's answer as HTTP; what is no proxy answer becomes a plain JSON 200, as in the cloud."""
    if not isinstance(result, dict) or "statusCode" not in result:
        return HttpAnswer(200, (("Content-Type", "application/json"),), json.dumps(result).encode())
    raw = result.get("body") or ""
    body = base64.b64decode(raw) if result.get("isBase64Encoded") else raw.encode()
    headers = [(k, str(v)) for k, v in (result.get("headers") or {}).items()]
    headers += [("Set-Cookie", cookie) for cookie in result.get("cookies") or ()]
    return HttpAnswer(int(result["statusCode"]), tuple(headers), body)
