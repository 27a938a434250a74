"""What `/openapi.json` says of the sale is what the sale's routes are."""

from functions.api.document import SALE_FILE, merged
from functions.api.handler import create_app
from local.sale_document import sale_document, text


def test_the_written_document_is_that_of_the_routes() -> None:
    assert SALE_FILE.read_text() == text(), "write it again: python -m local.sale_document"


def test_nothing_of_one_function_hides_something_of_the_other() -> None:
    own, sale = create_app(lambda: None).openapi(), sale_document()  # type: ignore[arg-type, return-value]
    assert not own["paths"].keys() & sale["paths"].keys()
    schemas = own["components"]["schemas"]
    for name, schema in sale["components"]["schemas"].items():
        assert schemas.get(name, schema) == schema, name
    whole = merged(own, sale)
    assert len(whole["paths"]) == len(own["paths"]) + len(sale["paths"])
