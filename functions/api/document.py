"""`/openapi.json`: the routes of both functions in one document, made when it is first asked for and then kept."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from fastapi import Response

from functions.http import Routes

SALE_FILE: Final = Path(__file__).with_name("sale_document.json")
"""What `python -m local.sale_document` wrote of the sale, a function of its own that this one does not load."""


def merged(own: Mapping[str, Any], sale: Mapping[str, Any]) -> dict[str, Any]:
    """Both, whose paths differ and whose schemas of one name are the same."""
    schemas = own["components"]["schemas"] | sale["components"]["schemas"]
    components = {**own["components"], "schemas": schemas}
    return {**own, "paths": own["paths"] | sale["paths"], "components": components}


def router(own: Callable[[], Mapping[str, Any]]) -> Routes:
    """The route; `own` is the document of this function."""
    routes, kept = Routes(), list[bytes]()

    @routes.get("/openapi.json", include_in_schema=False)
    def document() -> Response:
        if not kept:
            kept.append(json.dumps(merged(own(), json.loads(SALE_FILE.read_text()))).encode())
        return Response(kept[0], media_type="application/json")

    return routes
