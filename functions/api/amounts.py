"""A number of GB in a body: a JSON number, read by its shortest text, or a decimal string."""

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, StringConstraints, WithJsonSchema

AMOUNT_MAX_CHARS: Final = 32


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Amount = Annotated[
    str,
    StringConstraints(max_length=AMOUNT_MAX_CHARS),
    BeforeValidator(_text),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]}),
]
