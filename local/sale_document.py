"""The routes of the sale as OpenAPI, written down where the function that serves `/openapi.json` finds them.

The API and the sale are two functions, and the API loads nothing of the sale. `python -m local.sale_document` writes the
file again; a test fails while it is older than the routes.
"""

import json
import re
import sys
import warnings
from typing import Any

from functions.api.document import SALE_FILE
from functions.x402.app import create_app


def sale_document() -> dict[str, Any]:
    """Paths and schemas of the sale. Every operation is named after its method and path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two methods of one function, whose names are given below
        found = create_app(lambda: None).openapi()  # type: ignore[arg-type, return-value]  # nothing is wired to list routes
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            operation["operationId"] = re.sub(r"[^a-z0-9]+", "_", f"{method}{path.lower()}").strip("_")
            operation["tags"] = ["sale"]
    return {name: found[name] for name in ("paths", "components")}


def text() -> str:
    """The file."""
    return json.dumps(sale_document(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    SALE_FILE.write_text(text())
    sys.stdout.write(f"{SALE_FILE}\n")
