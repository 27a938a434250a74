"""What the sale's routes take and answer beside what their signatures say, in the words of OpenAPI 3.1.

Requests are made from it in `tests/fuzz/test_sale_document.py`. Leaves out the bodies of answers.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

Described = dict[str, Any]
_TEXT: Final = {"type": "string"}
_GB: Final = {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$"}
_SLUG: Final = {"type": "string", "pattern": "^[a-z0-9_]{1,64}$"}
_TERMS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "tier": ("What is bought: a tier of the price sheet; its default one if nothing is said.", _TEXT),
    "country": ("ISO 3166-1 alpha-2, or any.", {"type": "string", "pattern": "^([A-Za-z]{2}|any)$"}),
    "traffic": ("GB of 1,000,000,000 bytes; the least that is sold if nothing is said.", _GB),
    "duration": ("Seconds that the key lives. Free.", {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"}),
    "sid": ("A session's name, for the username that is told first.", _SLUG),
    "rot": ("When that session changes its exit.", _TEXT),
    "city": ("Slug of a city that the device must be in.", _SLUG),
    "carrier": ("Slug of a carrier that the device must have.", _SLUG),
    "addTrafficGB": ("GB more.", _GB),
}
_HEADERS: Final[Mapping[str, str]] = {
    "Payment-Signature": "The payment: a transaction hash (Base or Solana), or the base64 JSON of an x402 v2 client.",
    "X-Payment": 'The payment in the older form: {"transactionHash", "network", "payer"}, or what an x402 v1 client sends.',
    "X-Payment-Proof": "The paying wallet's signature of textToSign: the strongest word on whose payment it is.",
    "X-Quote-Secret": "quoteSecret of the 402, where its quoteTag was put into the transaction.",
    "Idempotency-Key": "A name for this payment: the same name with another one is 409.",
    "X-Session-Token": "What the purchase returned as sessionToken.",
    "X-API-Key": "An API key.",
}
_PAYING: Final = ("Payment-Signature", "X-Payment", "X-Payment-Proof", "X-Quote-Secret", "Idempotency-Key")
_ANSWERS: Final[Mapping[int, str]] = {
    400: "A field that cannot be used, named first; or a payment that is malformed. Do not pay again.",
    401: "The session token, or the API key, is none.",
    402: "The price, in every form: paymentRequirement for people and older clients, PAYMENT-REQUIRED for x402 v2, accepts "
    "for x402 v1.",
    403: "The payment is not proven to be the caller's; the message holds the text to sign. Do not pay again.",
    409: "The payment, or its name, was used otherwise; or what is asked for cannot be done now.",
    429: "Too often: wait for Retry-After. Nothing was charged.",
    503: "Nothing is known yet, nothing is free, or the sale is closed: repeat the same request after Retry-After, and do "
    "not pay again.",
}
_TOLD: Final = {
    "schema": {"type": "string", "contentEncoding": "base64"},
    "description": "x402 v2: base64 JSON, under 2 KB.",
}


def _parameters(
    terms: Iterable[str], headers: Iterable[str], required: Iterable[str] = ()
) -> list[Described]:
    needed = set(required)
    query = [
        {
            "name": n,
            "in": "query",
            "required": n in needed,
            "description": _TERMS[n][0],
            "schema": _TERMS[n][1],
        }
        for n in terms
    ]
    told = [
        {"name": n, "in": "header", "required": n in needed, "description": _HEADERS[n], "schema": _TEXT}
        for n in headers
    ]
    return [*query, *told]


def _answers(*statuses: int) -> Described:
    found: Described = {}
    for status in statuses:
        kind = "application/json" if status == 402 else "application/problem+json"
        found[str(status)] = {
            "description": _ANSWERS[status],
            "content": {kind: {"schema": {"type": "object"}}},
        }
    if 402 in statuses:
        found["402"]["headers"] = {"PAYMENT-REQUIRED": _TOLD}
    return found


def sold(summary: str, terms: Iterable[str], *, key: bool = False) -> Described:
    """A route that answers a price, or what a payment buys."""
    headers = (*_PAYING, *(("X-API-Key",) if key else ()))
    return {
        "summary": summary,
        "parameters": _parameters(sorted(terms), headers, ("X-API-Key",) if key else ()),
        "responses": _answers(400, *((401,) if key else ()), 402, 403, 409, 429, 503),
    }


def managed(summary: str, *more: int, terms: Iterable[str] = ()) -> Described:
    """A route of a session, known by its token. `more`: what it answers beside 200, 400, 401, 429 and 503."""
    token = ("X-Session-Token",)
    return {
        "summary": summary,
        "parameters": _parameters(terms, token, (*token, *terms)),
        "responses": _answers(400, 401, *more, 429, 503),
    }


def topped_up(summary: str) -> Described:
    """More traffic, which is paid for, or more time, which is free."""
    body = {
        "type": "object",
        "properties": {
            "addTrafficGB": {"type": ["string", "number"], "description": _TERMS["addTrafficGB"][0]},
            "addDurationSeconds": {"type": "integer", "minimum": 0},
        },
    }
    found = managed(summary, 402, 403, 409)
    found["parameters"] = _parameters((), ("X-Session-Token", *_PAYING), ("X-Session-Token",))
    return found | {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}
