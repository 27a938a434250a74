"""Reads the answers of large reads by the interpreter's own JSON parser.

botocore walks its model for every attribute of every row, which takes ten times as long; whoever reads hundreds of
thousands of rows notices. Its hook `before-parse` is made for such. Refusals and all other operations stay botocore's.
"""

import base64
import json
from typing import Any, Final

READS: Final = ("BatchGetItem", "Query", "Scan")


def read_fast(client: Any) -> None:
    """Let a client read these answers so from now on; a repeat changes nothing."""
    for operation in READS:
        event = f"before-parse.dynamodb.{operation}"
        client.meta.events.register(event, _read, unique_id=f"psx-{operation}")


def _read(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    if response_dict["status_code"] != 200:
        return
    customized_response_dict.update(json.loads(response_dict["body"], object_hook=_attribute))
    response_dict["body"] = b"{}"


def _attribute(found: dict[str, Any]) -> dict[str, Any]:
    """Bytes travel as base64, in an attribute that has nothing beside them."""
    text = found.get("B")
    return {"B": base64.b64decode(text)} if isinstance(text, str) and len(found) == 1 else found
