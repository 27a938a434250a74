package psx.peer

import java.io.IOException
import java.math.BigInteger
import java.net.Inet4Address
import java.net.Inet6Address
import java.net.InetAddress
import java.net.NetworkInterface
import java.net.UnknownHostException

// Where traffic may go: never into private networks, never to mail ports. The address that is judged is the one that is
// dialled; IPv4 inside IPv6 is unwrapped. Verdicts: docs/protocol/egress.json.

private val MAIL_PORTS = setOf(25, 465, 587, 2525)
private const val MAX_PORT = 65_535

/** The addresses that begin like this one. */
data class Prefix(private val size: Int, private val bits: Int, private val top: BigInteger) {
    constructor(address: ByteArray, bits: Int) : this(address.size, bits, top(address, bits))

    constructor(text: String) :
        this(InetAddress.getByName(text.substringBefore('/')).address, text.substringAfter('/').toInt())

    fun holds(address: ByteArray) = address.size == size && top(address, bits) == top

    private companion object {
        fun top(address: ByteArray, bits: Int): BigInteger = BigInteger(1, address).shiftRight(address.size * 8 - bits)
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

private val NUMBERS = Regex("[0-9.]+")
private val DOTTED = Regex("(0|[1-9][0-9]{0,2})(\\.(0|[1-9][0-9]{0,2})){3}")

/** Whether a host is written as an address and not as a name. */
fun isLiteral(host: String) = ':' in host || NUMBERS.matches(host)

/** The address that a literal is; null for a name, and for a form that others read differently. No resolver is asked. */
fun literal(host: String): InetAddress? = try {
    if (':' in host || DOTTED.matches(host)) InetAddress.getByName(host) else null
} catch (_: UnknownHostException) {
    null
}

/** The IPv4 address inside an IPv6 one, or the address itself. */
private fun unwrapped(address: ByteArray): ByteArray = when {
    address.size == 4 -> address
    SIX_TO_FOUR.holds(address) -> address.copyOfRange(2, 6)
    IPV4_AT_THE_END.any { it.holds(address) } -> address.copyOfRange(12, 16)
    else -> address
}

private fun isPublic(address: ByteArray): Boolean {
    val plain = unwrapped(address)
    return (plain.size == 4 || GLOBAL_UNICAST.holds(plain)) && SPECIAL.none { it.holds(plain) }
}

private const val OWN_FRESH_NANOS = 10_000_000_000L // a device that changes networks loses its sockets anyway
private const val OWN_TOLD_MAX = 16

/**
 * What is a device's own for having an address: with an interface's prefix, or without one as others see it. Of IPv6 never
 * less than the /64; an interface that claims too much is set wrong.
 */
fun ownNetwork(address: InetAddress, prefix: Int? = null): Prefix {
    val raw = address.address
    val (least, alone) = if (raw.size == 4) 8 to 32 else 32 to 64
    return Prefix(raw, if (prefix != null && prefix >= least) minOf(prefix, alone) else alone)
}

/** The owner's although they are public: networks of this machine's interfaces, and where relays see it. */
class OwnNetworks(private val interfaces: () -> List<Pair<InetAddress, Int>> = ::readInterfaces) {
    private val seenAt = LinkedHashSet<Prefix>()
    private var read = emptyList<Prefix>()
    private var readNanos: Long? = null

    /** A relay says from where it sees this device; the newest are kept, because each socket may leave by another one. */
    @Synchronized
    fun told(text: String) {
        val network = ownNetwork(literal(text) ?: return)
        seenAt.remove(network)
        seenAt.add(network)
        if (seenAt.size > OWN_TOLD_MAX) seenAt.remove(seenAt.first())
    }

    @Synchronized
    fun networks(): List<Prefix> {
        val now = System.nanoTime()
        if (readNanos?.let { now - it > OWN_FRESH_NANOS } != false) {
            read = interfaces().map { (address, prefix) -> ownNetwork(address, prefix) }
            readNanos = now
        }
        return seenAt.toList() + read
    }
}

private fun readInterfaces(): List<Pair<InetAddress, Int>> = try {
    NetworkInterface.getNetworkInterfaces().toList().flatMap { it.interfaceAddresses }
        .mapNotNull { entry -> entry.address?.let { it to entry.networkPrefixLength.toInt() } }
} catch (_: IOException) {
    emptyList()
}

/** `labAllow` are "address:port" pairs, the address as the JVM writes it, let through on a lab machine only. */
class EgressPolicy(private val labAllow: Set<String> = emptySet()) {
    /** The verdict on an address and port that are about to be dialled; null allows them. `own`: the device's networks. */
    fun verdict(address: InetAddress, port: Int, own: List<Prefix> = emptyList()): String? {
        if (port !in 1..MAX_PORT) return "blocked_port"
        if (labAllow.isNotEmpty() && "${address.hostAddress}:$port" in labAllow) return null
        if (port in MAIL_PORTS) return "blocked_port"
        val zoned = address is Inet6Address && (address.scopeId != 0 || address.scopedInterface != null)
        val known = address is Inet4Address || address is Inet6Address
        if (!known || zoned || !isPublic(address.address)) return "private_address"
        val isOwn = own.any { it.holds(address.address) || it.holds(unwrapped(address.address)) }
        return if (isOwn) "own_network" else null
    }
}
