"""Entry point of the x402 function: HTTP events go to the app, scheduled events to their job."""

from typing import Any

from functions.http import lambda_handler
from functions.x402.app import create_app
from functions.x402.validate import validate_sale
from functions.x402.wiring import wiring
from shared.runtime.log import configure

configure("x402")
_http = lambda_handler(create_app(wiring))


def handler(event: dict[str, Any], context: Any) -> Any:
    """AWS Lambda handler."""
    if event.get("job") == "validate_sale":
        return validate_sale(wiring())
    return _http(event, context)
