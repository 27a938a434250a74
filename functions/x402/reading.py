"""Reads what a request says, or refuses it with the field's name."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NoReturn

from fastapi import Request

from functions.http import ProblemError
from shared.sale.model import FieldFault, Payment, Prices, Problem
from shared.sale.rules import read_payment, read_traffic

POOL_TERMS: Final = frozenset({"tier", "country", "traffic", "duration", "sid", "rot"})
PORT_TERMS: Final = frozenset({"tier", "country", "traffic", "duration", "city", "carrier", "sid", "rot"})
EMPTY_BODIES: Final = frozenset({b"", b"{}", b"null"})
NAME_SHOWN_MAX: Final = 40


def pays(headers: Mapping[str, str]) -> bool:
    """Whether a request shows a payment."""
    return "payment-signature" in headers or "x-payment" in headers


def shown_payment(headers: Mapping[str, str]) -> Payment | None:
    """The payment that headers show, if they show one."""
    payment = read_payment(headers)
    if isinstance(payment, Problem):
        message = (
            "Payment-Signature: a transaction hash (0x and 64 hex digits, or a Solana signature), or the base64 JSON of "
            "an x402 payment on base; Idempotency-Key: 8 to 128 of A-Z, a-z, 0-9, _ and -; X-Quote-Secret: the 64 hex "
            "digits of quoteSecret; do not pay again"
        )
        raise ProblemError(400, payment.value, message)
    return payment


def refuse_unread(request: Request, body: bytes, known: frozenset[str]) -> None:
    """400 for terms that nobody would read, before they are paid for: misspelt, given twice, or in a body instead of the
    query.

    Who pays already is served what their quote said.
    """
    if pays(request.headers):
        return
    names = ", ".join(sorted(known))
    given = [name for name, _ in request.query_params.multi_items()]
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        refuse_field(FieldFault(unknown[:NAME_SHOWN_MAX], f"one of {names}"))
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice is not None:
        refuse_field(FieldFault(twice, "one value"))
    if body.strip() not in EMPTY_BODIES:
        refuse_field(FieldFault("body", f"nothing; terms stand in the query: {names}"))


def added_traffic(value: Any, prices: Prices) -> int | FieldFault:
    """`addTrafficGB` as bytes; a JSON number is read by its shortest text."""
    given = isinstance(value, int | float | str) and not isinstance(value, bool)
    traffic = read_traffic(str(value), prices) if given else FieldFault("addTrafficGB", "a number of GB")
    return replace(traffic, field="addTrafficGB") if isinstance(traffic, FieldFault) else traffic


def refuse_field(fault: FieldFault) -> NoReturn:
    raise ProblemError(400, "INVALID_FIELD", f"{fault.field}: allowed is {fault.allowed}")


def added_seconds(body: Mapping[str, Any], prices: Prices) -> int:
    """`addDurationSeconds`, 0 when nothing is said."""
    seconds = body.get("addDurationSeconds", 0)
    bounded = isinstance(seconds, int) and not isinstance(seconds, bool)
    if not bounded or not 0 <= seconds <= prices.duration_max_s:
        refuse_field(FieldFault("addDurationSeconds", f"0 to {prices.duration_max_s}"))
    return int(seconds)
