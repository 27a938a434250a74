"""Entry point of the x402 function: HTTP events go to the app, scheduled events to their job."""

from typing import Any, Final

from functions.http import lambda_handler
from functions.x402.app import create_app
from functions.x402.customer import buy_as_customer
from functions.x402.peer_tiers import test_peer_tiers
from functions.x402.serve_owed import serve_owed
from functions.x402.validate import validate_sale
from functions.x402.wiring import wiring
from shared.runtime.log import configure

JOBS: Final = {
    "validate_sale": validate_sale,
    "serve_owed": serve_owed,
    "test_peer_tiers": test_peer_tiers,
    "buy_as_customer": buy_as_customer,
}
configure("x402")
_http = lambda_handler(create_app(wiring))


def handler(event: dict[str, Any], context: Any) -> Any:
    """AWS Lambda handler."""
    job = JOBS.get(event.get("job", ""))
    if job is not None:
        return job(wiring())
    return _http(event, context)
