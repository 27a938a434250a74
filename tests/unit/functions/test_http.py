"""What both HTTP functions share."""

import json
import threading
from typing import Any

from fastapi import FastAPI

from functions.api.handler import create_app
from functions.http import PATH_MAX_BYTES, ProblemError, Routes, install, lambda_handler
from local.api_gateway import http_event
from local.http_server import HttpRequest


def ask(path: str) -> tuple[int, Any]:
    """One request to an app with one route of each kind."""
    app, routes = FastAPI(), Routes(prefix="/v1")
    install(app)

    @routes.get("/thread")
    def thread() -> dict[str, int]:
        return {"thread": threading.get_ident()}

    @routes.get("/refused")
    def refused() -> None:
        raise ProblemError(409, "SOME_CODE", "why")

    app.include_router(routes)
    event = http_event(HttpRequest("GET", path, (("host", "api.example"),), b"", "192.0.2.1"))
    answer = lambda_handler(app)(event, None)  # type: ignore[arg-type]  # no context is needed
    return answer["statusCode"], json.loads(answer["body"])


def test_work_runs_where_it_is_called_and_in_no_thread_of_its_own() -> None:
    before = set(threading.enumerate())
    assert ask("/v1/thread") == (200, {"thread": threading.get_ident()})
    status, problem = ask("/v1/refused")
    assert (status, problem["code"], problem["message"]) == (409, "SOME_CODE", "why")
    assert set(threading.enumerate()) <= before


def test_a_path_is_bounded_in_bytes() -> None:
    longest = "/v1/" + "%C3%BC" * ((PATH_MAX_BYTES - 4) // 2)
    assert "more than" not in ask(longest)[1]["message"]
    status, problem = ask(longest + "x")
    assert (status, problem["message"]) == (404, "there is nothing at a path of more than 1000 bytes")


def test_all_routes_are_of_the_kind_that_takes_no_threads() -> None:
    app = create_app(lambda: None)  # type: ignore[arg-type, return-value]  # nothing is wired to list routes
    found = (getattr(included, "original_router", None) for included in app.routes)
    routers = [router for router in found if router is not None]
    assert len(routers) > 10
    assert {type(router) for router in routers} == {Routes}
