package psx.peer

import java.math.BigInteger
import java.net.Inet4Address
import java.net.Inet6Address
import java.net.InetAddress

// Where traffic may go: never into private networks, never to mail ports. The address that is judged is the one that is
// dialled; IPv4 inside IPv6 is unwrapped. Verdicts: docs/protocol/egress.json.

private val MAIL_PORTS = setOf(25, 465, 587, 2525)
private const val MAX_PORT = 65_535

private class Prefix(text: String) {
    private val bits = text.substringAfter('/').toInt()
    private val network = InetAddress.getByName(text.substringBefore('/')).address

    fun holds(address: ByteArray): Boolean {
        if (address.size != network.size) return false
        val shift = network.size * 8 - bits
        return BigInteger(1, address).shiftRight(shift) == BigInteger(1, network).shiftRight(shift)
    }
}

private val SPECIAL = listOf(
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
    "2001::/23", "2001:db8::/32", "3fff::/20",
).map(::Prefix)
private val GLOBAL_UNICAST = Prefix("2000::/3")
private val SIX_TO_FOUR = Prefix("2002::/16")
private val IPV4_AT_THE_END = listOf("64:ff9b::/96", "::/96").map(::Prefix)

private fun isPublic(address: ByteArray): Boolean = when {
    address.size == 4 -> SPECIAL.none { it.holds(address) }
    SIX_TO_FOUR.holds(address) -> isPublic(address.copyOfRange(2, 6))
    IPV4_AT_THE_END.any { it.holds(address) } -> isPublic(address.copyOfRange(12, 16))
    !GLOBAL_UNICAST.holds(address) -> false
    else -> SPECIAL.none { it.holds(address) }
}

/** `labAllow` are "address:port" pairs, the address as the JVM writes it, let through on a lab machine only. */
class EgressPolicy(private val labAllow: Set<String> = emptySet()) {
    /** The verdict on an address and port that are about to be dialled; null allows them. */
    fun verdict(address: InetAddress, port: Int): String? {
        if (port !in 1..MAX_PORT) return "blocked_port"
        if (labAllow.isNotEmpty() && "${address.hostAddress}:$port" in labAllow) return null
        if (port in MAIL_PORTS) return "blocked_port"
        val zoned = address is Inet6Address && (address.scopeId != 0 || address.scopedInterface != null)
        val known = address is Inet4Address || address is Inet6Address
        return if (known && !zoned && isPublic(address.address)) null else "private_address"
    }
}
