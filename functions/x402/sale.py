"""The work behind the sale's routes. Every answer about money that is not certain says: do not pay again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn

from fastapi import Request
from fastapi.responses import JSONResponse

from functions.http import ProblemError, source_address, source_network
from functions.limits import spend
from functions.x402.admin import api_key_of
from functions.x402.reading import (
    POOL_TERMS,
    added_seconds,
    added_traffic,
    pays,
    refuse_field,
    refuse_unread,
    shown_payment,
)
from functions.x402.validate import validated_rails
from functions.x402.wiring import Wiring
from shared.access.live import Limit
from shared.access.model import Pak
from shared.chain.model import UnknownReason
from shared.guard.settings import sale_faults
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import Country
from shared.kernel.money import format_gb
from shared.pool.numbers import known
from shared.sale import answers
from shared.sale.live import BUY_LIMIT, LOOK_LIMIT, NAMED_LIMIT, PAID_LIMIT, TOP_UP_LIMIT
from shared.sale.model import (
    Bought,
    FieldFault,
    Held,
    Offer,
    Order,
    Payment,
    Prices,
    Problem,
    Product,
    Rail,
    Refused,
    Session,
)
from shared.sale.ports import PortLease
from shared.sale.rules import lease_of, peer_tiers, read_prices, read_terms, told_tier, types_on_sale
from shared.sale.service import account_requester, pool_order, top_up_order
from shared.sale.verifying import NONE_FREE, SHOWN_HASH, SUSPENDED, UNKNOWN_RETRY_S

PEER_TYPES: Final = frozenset(IpType) - {IpType.UNKNOWN}
SEEN_WITHIN_S: Final = 120
"""Blocks of either chain come within seconds; the rest is room for nodes that lag."""
NONE_FREE_RETRY_S: Final = 60
"""Devices come back, and leases end, no sooner than the jobs look at them."""
ELSEWHERE_MAX: Final = 8
OFF_SALE: Final = "no longer on sale; what was bought stays"
_STATUS: Final = {
    Problem.NOT_ON_SALE: 503,
    Problem.PAYMENT_REQUIRED: 402,
    Problem.PAYMENT_UNKNOWN: 503,
    Problem.PAYMENT_INVALID: 402,
    Problem.PAYMENT_TOO_SMALL: 402,
    Problem.PAYMENT_TOO_OLD: 403,
    Problem.NOT_YOURS: 403,
    Problem.OTHER_PRODUCT: 409,
    Problem.SHARES_UNKNOWN: 409,
    Problem.TOO_MANY_PARTS: 409,
    Problem.OTHER_PAYLOAD: 409,
    Problem.BAD_PAYMENT: 400,
    Problem.RETRY: 503,
    Problem.NO_STOCK: 503,
    Problem.NO_DEVICE: 503,
}
_RETRY_S: Final = {Problem.NO_STOCK: NONE_FREE_RETRY_S, Problem.NO_DEVICE: NONE_FREE_RETRY_S}


class Sale:
    """Routes' work, one method each."""

    def __init__(self, wiring: Callable[[], Wiring]) -> None:
        self._wiring = wiring

    @property
    def w(self) -> Wiring:
        """The container's wiring."""
        return self._wiring()

    def admit(self, request: Request, body: bytes) -> bool:
        """Count who writes under an Idempotency-Key and look at their credential, before anything is kept or told again.

        Without one nothing is kept: what a payment buys is kept under the payment's own name.
        """
        self.limit(request, NAMED_LIMIT, source_network(request))
        key, token = request.headers.get("x-api-key"), request.headers.get("x-session-token")
        if key:
            api_key_of(self.w, request)
        if token:
            self.session(request)
        return bool(key or token)

    def _catalogue(self, tier: str) -> Prices | None:
        told = (read_prices(setting, tier) for setting in self.w.live.versions("prices"))
        return next((found for found in told if found is not None), None)

    def prices(self, tier: str = "") -> Prices:
        """The live catalogue (of a kind of port), or what was promised of it last; 503 while there is none."""
        prices = self._catalogue(tier)
        if prices is None:
            raise ProblemError(503, Problem.NOT_ON_SALE.value, "no prices are set yet; nothing was charged")
        return prices

    def open_prices(self, tier: str = "") -> Prices:
        """The catalogue on a route that takes money: 503 until the sale is validated."""
        prices = self.prices(tier)
        found = self.w.live.get("sale")
        is_closed = bool(sale_faults(found, self.w.counter.now_ms()))
        if is_closed or found.get("rails") != validated_rails(self.w.rails):
            message = "the sale is closed until its configuration is validated; do not pay now"
            raise ProblemError(503, Problem.NOT_ON_SALE.value, message, {"Retry-After": "30"})
        return prices

    def peer_tiers(self) -> dict[str, str]:
        """Tiers of peers that are on sale, and their IP types; none while the flag is off."""
        return peer_tiers(self.w.live.get("prices"), types_on_sale(self.w.live.get("peer_tiers")))

    def sheet(self) -> dict[str, Any]:
        """The price sheet of pool access."""
        peers = [self.prices(tier) for tier in self.peer_tiers()]
        return answers.price_sheet(self.prices(), self.w.rails, self.w.place, peers)

    def countries(self, pool: Pool = Pool.MBL) -> dict[Country, int]:
        """Live stock of what is on sale; empty when the live network cannot be asked."""
        numbers = known(self.w.redis, self.w.counter.now_ms())
        return numbers.stock_of(pool) if numbers else {}

    def buy(self, request: Request, body: bytes = b"") -> JSONResponse:
        """`/v1/x402/pool`: 402 with the price, or credentials for a payment."""
        refuse_unread(request, body, POOL_TERMS)
        self.open_prices()
        tier, query = request.query_params.get("tier", ""), request.query_params
        paying, sold = pays(request.headers), types_on_sale(self.w.live.get("peer_tiers"))

        def read(setting: Mapping[str, Any]) -> Offer | FieldFault:
            peers = peer_tiers(setting, sold)
            # What failed its test since is owed to who was quoted it, until it passes or is given back.
            known = peer_tiers(setting, PEER_TYPES) if paying else peers
            prices = read_prices(setting, tier if tier in known else "")
            if prices is None:
                return FieldFault("tier", "one that is on sale")
            terms = read_terms(query, prices)
            if isinstance(terms, FieldFault):
                other = terms.field == "tier" and peers
                return replace(terms, allowed=", ".join((prices.tier, *peers))) if other else terms
            return Offer(pool_order(terms, prices), prices, current=prices.ip_type in sold)

        offers = self.offers("prices", read, paying=paying)
        terms = offers[0].order.terms
        name = terms.tier if terms else tier
        return self.sell(
            request, offers, f"{format_gb(offers[0].order.traffic_bytes)} GB of {name} proxy traffic"
        )

    def offers(
        self, setting: str, read: Callable[[Mapping[str, Any]], Offer | FieldFault], *, paying: bool
    ) -> tuple[Offer, ...]:
        """What is asked for at today's terms, and for who pays at those that quotes may still promise; 400 for none."""
        today, *before = self.w.live.versions(setting)
        now = read(today)
        promised = [
            replace(o, current=False) for o in map(read, before if paying else ()) if isinstance(o, Offer)
        ]
        if isinstance(now, Offer):
            return (now, *promised)
        return tuple(promised) or refuse_field(now)

    def sell(self, request: Request, offers: Sequence[Offer], what: str) -> JSONResponse:
        """402 with the price of an order, or what a payment buys."""
        payment, address = shown_payment(request.headers), source_address(request)
        asking = (BUY_LIMIT, source_network(request))
        if payment is None:
            self.limit(request, *asking)
            return self.required(request, offers[0].order, what, None)
        self.limit(request, PAID_LIMIT, source_network(request))
        result = self.w.counter.buy(offers, payment, address)
        if isinstance(result, Refused):
            return self.refused(request, result, offers[0], what, payment, asking)
        return self.bought(result, offers[0].prices)

    def limit(self, request: Request, limit: Limit, who: str) -> None:
        """429 when a caller asks too often. With the live network away only who asks for a price, or looks, goes on."""
        counter, closed = self.w.counter, limit not in {BUY_LIMIT, LOOK_LIMIT}
        more = "; nothing was charged, do not pay again"
        spend(
            request,
            self.w.redis,
            [limit],
            counter.requester(who),
            counter.now_ms(),
            closed=closed,
            message=more,
        )

    def look(self, request: Request) -> None:
        """429 for who looks up sessions without end."""
        self.limit(request, LOOK_LIMIT, source_network(request))

    def exact(self) -> Rail | None:
        """The rail of signed transfers, while its gas wallet was found able to send them."""
        offered = self.w.live.get("sale").get("exact") is True
        return self.w.counter.exact_rail() if offered else None

    def required(
        self, request: Request, order: Order, description: str, error: str | None, requester: str = ""
    ) -> JSONResponse:
        """A 402 in every form, for whoever asks from an address, or is known by better than that; 503 for what nobody could
        have now: nothing is asked for it.
        """
        w, exact = self.w, self.exact()
        pool = Pool.PEER if order.terms is not None and order.terms.ip_type else Pool.MBL
        stock = self.countries(pool)
        if w.counter.lacks(order):
            _none_free(order, stock, error)
        quote = w.counter.quote(order, requester or source_address(request))
        resource = w.settings.api_base_url + request.url.path
        is_port = order.product is Product.PORT
        caveats = self.port_caveats() if is_port else answers.CAVEATS
        asked = answers.Asked(resource, description, order.due_micro, quote, error, caveats)
        body = answers.payment_required(asked, w.rails, exact, stock)
        header = answers.payment_required_header(asked, w.rails, exact)
        return JSONResponse(body, 402, {"PAYMENT-REQUIRED": header, "Cache-Control": "no-store"})

    def port_caveats(self) -> Sequence[str]:
        """What whoever buys a dedicated port should know."""
        return answers.port_caveats(self.w.counter.mint.held_share_percent())

    def refused(
        self,
        request: Request,
        result: Refused,
        offer: Offer,
        description: str,
        payment: Payment,
        asking: tuple[Limit, str],
    ) -> JSONResponse:
        """A payment that buys nothing, told so that an honest payer knows what to do.

        A price that is told again counts as a price that was asked for: payments that are none open no more quotes.
        """
        status, order = _STATUS[result.problem], offer.order
        if status == 402 and not offer.current:
            message = f"{result.detail}; these terms are not on sale any more: ask for the price anew before you pay"
            raise ProblemError(409, result.problem.value, message)
        if status == 402:
            self.limit(request, *asking)
            requester = account_requester(order) if order.account else ""
            words = f"{result.problem.value}: {result.detail}"
            return self.required(request, order, description, words, requester)
        message, headers = result.detail, {}
        if status == 503:
            headers["Retry-After"] = str(_RETRY_S.get(result.problem, UNKNOWN_RETRY_S))
            detail = self.unseen(payment) if _is_unseen(result, payment) else result.detail
            message = f"{detail}; repeat this request with the same payment, do not pay again"
        if result.problem in {Problem.NOT_YOURS, Problem.PAYMENT_TOO_OLD}:
            shown = payment.tx_hash or SHOWN_HASH
            text = self.w.counter.text_to_sign(order, payment.network, shown).replace("\n", "\\n")
            message = (
                f"{result.detail}. If you are the payer: send the secret of the quote whose tag is in the transaction as "
                f"X-Quote-Secret, or sign this text with the paying wallet and send the signature as X-Payment-Proof: "
                f'"{text}"; do not pay again'
            )
        raise ProblemError(status, result.problem.value, message, headers)

    def unseen(self, payment: Payment) -> str:
        """Where a hash was looked for in vain, and when waiting has become useless."""
        rail = self.w.rail_of(payment.network)
        return (
            f"{UnknownReason.NOT_FOUND.value}: {payment.tx_hash} is not on {rail.network} ({rail.caip2}), where a payment "
            f"is seen within {SEEN_WITHIN_S // 60} minutes; when an explorer of {rail.network} does not show it by then, "
            "it is mistyped or was paid on another chain, where we cannot see it: show the hash that the explorer shows"
        )

    def bought(self, bought: Bought, prices: Prices) -> JSONResponse:
        """200 with credentials and what was settled."""
        rail = next(r for r in self.w.rails if r.network == bought.claim.network)
        return self.credentials(bought, prices, answers.payment_response_headers(bought.claim, rail.caip2))

    def credentials(
        self, bought: Bought, prices: Prices | Held, headers: Mapping[str, str] | None = None
    ) -> JSONResponse:
        """200 with credentials."""
        pool = Pool.PEER if prices.ip_type else Pool.MBL
        countries = [c.upper() for c in sorted(self.countries(pool))]
        port = self.port_of(bought.username)
        body = answers.credentials(bought, prices, self.w.place, self.used(bought.pak), countries, port)
        return JSONResponse(body, 200, {"Cache-Control": "no-store", **(headers or {})})

    def port_of(self, username: str) -> PortLease | None:
        """The dedicated port that a username is for; None for pool access."""
        lease_id = lease_of(username)
        return self.w.counter.mint.ports.find(lease_id) if lease_id else None

    def held(self, session: Session, pak: Pak) -> Prices | Held:
        """What a session has, for answers that sell nothing: they are given when its tier is off sale, too."""
        port = self.port_of(session.username)
        tier = port.tier if port else self.tier_of(pak)
        found = None if pak.ip_type and not tier else self._catalogue(tier)
        own = tier or (Pool.PEER if pak.ip_type else Pool.MBL).value
        return found or Held(own, OFF_SALE, pak.ip_type)

    def tier_of(self, pak: Pak) -> str:
        """The tier of peers that a key was bought in, whether or not it is on sale now; empty for modems."""
        return told_tier(self.w.live.versions("prices"), pak.ip_type) if pak.ip_type else ""

    def used(self, pak: Pak) -> int:
        """Bytes used, as the roll-up has them: the same that every other answer shows, at most 10 s old."""
        return pak.used_bytes

    def session(self, request: Request) -> tuple[Session, Pak, str]:
        """The caller's session by its token, or 401."""
        self.look(request)
        token = request.headers.get("x-session-token", "")
        found = self.w.counter.session(token) if token.startswith("x402s_") else None
        if found is None:
            raise ProblemError(
                401, "SESSION_TOKEN_INVALID", "send the X-Session-Token that the purchase returned"
            )
        return (*found, token)

    def top_up(self, request: Request, body: Mapping[str, Any]) -> JSONResponse:
        """`/manage/{pool,session}/topup`: more time is free, more traffic is paid for at its tier's price."""
        self.open_prices()
        session, pak, token = self.session(request)
        payment, address = shown_payment(request.headers), source_address(request)
        port = self.port_of(session.username)
        asking, tier = (TOP_UP_LIMIT, pak.pak_id), port.tier if port else self.tier_of(pak)
        if pak.ip_type and (not tier or (payment is None and tier not in self.peer_tiers())):
            _suspended()
        prices = self.open_prices(tier)
        self.limit(request, *(asking if payment is None else (PAID_LIMIT, pak.pak_id)))
        seconds = added_seconds(body, prices)
        if not body.get("addTrafficGB"):
            if not seconds:
                refuse_field(FieldFault("addTrafficGB", "give addTrafficGB, addDurationSeconds or both"))
            return self.extended(session, pak, token, seconds, prices)

        def read(setting: Mapping[str, Any]) -> Offer | FieldFault:
            found = read_prices(setting, tier)
            traffic = (
                added_traffic(body["addTrafficGB"], found)
                if found
                else FieldFault("addTrafficGB", "none now")
            )
            if found is None or isinstance(traffic, FieldFault):
                return traffic if isinstance(traffic, FieldFault) else FieldFault("addTrafficGB", "none now")
            current = found.ip_type in types_on_sale(self.w.live.get("peer_tiers"))
            return Offer(top_up_order(session, traffic, found, tier), found, current=current)

        offers = self.offers("prices", read, paying=payment is not None)
        what = f"{format_gb(offers[0].order.traffic_bytes)} GB more for key {pak.pak_id}"
        if payment is None:
            return self.required(request, offers[0].order, what, None)
        result = self.w.counter.top_up(session, token, offers, payment, address)
        if isinstance(result, Refused):
            return self.refused(request, result, offers[0], what, payment, asking)
        claim = result.claim
        if port is not None:  # in a repeat, too: the first answer may have been lost before this was done
            paid_at_ms = max(port.paid_at_ms, claim.claimed_at_ms)
            self.w.counter.mint.ports.extend(port, port.expires_at_ms, paid_at_ms)
        if seconds:
            once = f"time#{claim.network}#{claim.key}"
            return self.extended(session, result.pak, token, seconds, prices, once)
        return self.bought(result, prices)

    def extended(
        self, session: Session, pak: Pak, token: str, seconds: int, prices: Prices, once: str = ""
    ) -> JSONResponse:
        """More time for a key, and for the hold of its port; a port's is counted from when it was last paid for."""
        port = self.port_of(session.username)
        changed = self.w.counter.extend(pak, seconds, prices, port.paid_at_ms if port else None, once)
        if port is not None:
            self.w.counter.mint.ports.extend(port, changed.expires_at_ms or port.expires_at_ms)
        return self.connection(session, changed, token, prices)

    def connection(self, session: Session, pak: Pak, token: str, prices: Prices | Held) -> JSONResponse:
        """The credentials of a session."""
        return self.credentials(self.w.counter.connection(session, pak, token), prices)


def _is_unseen(result: Refused, payment: Payment) -> bool:
    return result.detail == UnknownReason.NOT_FOUND and bool(payment.tx_hash)


def _none_free(order: Order, stock: Mapping[Country, int], error: str | None) -> NoReturn:
    country = order.terms.country if order.terms else None
    others = sorted((c for c in stock if c != country), key=lambda c: -stock[c])[:ELSEWHERE_MAX]
    where = f" in {country.upper()}" if country else ""
    hint = f", or for another country: {', '.join(others).upper()}" if others and country else ""
    before = f"{error}; " if error else ""
    message = f"{before}{NONE_FREE}{where}: do not pay, ask again later{hint}"
    raise ProblemError(503, Problem.NO_STOCK.value, message, {"Retry-After": str(NONE_FREE_RETRY_S)})


def _suspended() -> NoReturn:
    message = (
        f"{SUSPENDED}: do not pay now, and what is paid already do not pay again, but repeat this request with the same "
        "payment later"
    )
    raise ProblemError(503, Problem.NOT_ON_SALE.value, message, {"Retry-After": "60"})
