"""Entry point of the API function."""

from collections.abc import Callable

from fastapi import FastAPI
from mangum import Mangum

from functions.api import inventory, operations, pages, peers, resellers
from functions.api.wiring import Wiring, wiring
from functions.http import install
from shared.runtime.log import configure


def create_app(wired: Callable[[], Wiring]) -> FastAPI:
    """The app; nothing is connected before the first request."""
    app = FastAPI(title="psx", docs_url=None, redoc_url=None)
    install(app)
    for room in (peers, inventory, resellers, operations, pages):
        app.include_router(room.router(wired))
    return app


configure("api")
handler = Mangum(create_app(wiring), lifespan="off")
