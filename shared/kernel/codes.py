"""Why a customer's request is refused, without any transport: edges map these to HTTP and SOCKS by total tables."""

from enum import StrEnum


class Refusal(StrEnum):
    """Codes that customers see, as `CODE: message (req: <uuid>)`."""

    AUTH_REQUIRED = "E_AUTH_REQUIRED"
    AUTH_INVALID = "E_AUTH_INVALID"
    CAP_EXCEEDED = "E_CAP_EXCEEDED"
    USERNAME_PARSE = "E_USERNAME_PARSE"
    RATE_LIMITED_AUTH = "E_RATE_LIMITED_AUTH"
    RATE_LIMITED_CONN = "E_RATE_LIMITED_CONN"
    SESSION_LIMIT = "E_SESSION_LIMIT"
    NO_STOCK = "E_NO_STOCK_COUNTRY"
    STOCK_DEGRADED = "E_STOCK_DEGRADED"
    SSRF_BLOCKED = "E_SSRF_BLOCKED"
    PORT_BLOCKED = "E_PORT_BLOCKED"
    DOMAIN_BLOCKED = "E_DOMAIN_BLOCKED"
    TARGET_REFUSED = "E_TARGET_REFUSED"
    TARGET_DNS = "E_TARGET_DNS"
    TARGET_TIMEOUT = "E_TARGET_TIMEOUT"
    BAD_REQUEST = "E_BAD_REQUEST"
    PROTOCOL_NOT_ALLOWED = "E_PROTOCOL_NOT_ALLOWED"
    INTERNAL = "E_INTERNAL"


class Pool(StrEnum):
    """The two kinds of exits that are kept apart everywhere: production modems and community devices."""

    MBL = "mbl"
    PEER = "peer"


class IpType(StrEnum):
    """Class of an exit's address, decided by its ASN alone."""

    MOBILE = "mobile"
    RESIDENTIAL = "residential"
    DATACENTER = "datacenter"
    UNKNOWN = "unknown"


class SpeedTier(StrEnum):
    """Measured speed of an exit; decides how many connections and customers it may carry."""

    FAST = "fast"
    MEDIUM = "medium"
    SLOW = "slow"
    UNKNOWN = "unknown"
