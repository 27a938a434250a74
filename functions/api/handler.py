"""Entry point of the API function."""

from collections.abc import Callable

from fastapi import Depends, FastAPI

from functions.api import (
    account,
    balance,
    consent,
    device_page,
    document,
    earnings,
    enrolling,
    incidents,
    inventory,
    ip_classes,
    keys,
    leases,
    network_view,
    operations,
    owned,
    pages,
    resellers,
    setting_changes,
    sign_in,
    status_page,
    visitor_pages,
)
from functions.api.admission import admitted
from functions.api.audit import install_audit
from functions.api.limits import limited
from functions.api.wiring import Wiring, wiring
from functions.http import install, lambda_handler
from functions.idempotency import install_idempotency
from shared.runtime.log import configure


def create_app(wired: Callable[[], Wiring]) -> FastAPI:
    """The app; nothing is connected before the first request."""
    limits = [Depends(limited(wired))]
    app = FastAPI(title="psx", openapi_url=None, docs_url=None, redoc_url=None, dependencies=limits)
    install_audit(app, wired)
    install_idempotency(app, wired, admitted(wired))
    install(app)
    supply = (enrolling, owned, earnings, consent, device_page, ip_classes)
    rest = (inventory, account, balance, keys, sign_in, resellers, leases, operations, setting_changes, pages)
    views = (status_page, network_view, incidents, visitor_pages)
    for room in (*supply, *rest, *views):
        app.include_router(room.router(wired))
    app.include_router(document.router(app.openapi))
    return app


configure("api")
handler = lambda_handler(create_app(wiring))
