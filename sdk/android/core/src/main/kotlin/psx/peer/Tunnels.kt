package psx.peer

import java.io.IOException
import java.net.ConnectException
import java.net.InetAddress
import java.net.InetSocketAddress
import java.net.UnknownHostException
import java.util.concurrent.Executors

private const val MAX_TUNNELS = 256
private const val LOOKUPS_MAX = 256
private const val LOOKUP_THREADS = 32 // silent name servers keep one for up to half a minute
private const val WINDOWS_MAX_BYTES = 64L * 1024 * 1024
private const val TARGET_HIGH_BYTES = 256 * 1024
private const val SESSION_QUEUE_BYTES = 8 * 1024 * 1024
private const val FLUSH_MAX_MS = 30_000L
private const val BLOCKED_MAX_MS = 30_000L
private const val ADDRESSES_TRIED = 4

/** Why a target was not reached, in the words of both protocols. */
class DialFailure(val reason: Reason, val word: String, val detail: String)

/** What all tunnels of a device share. */
class Table(val settings: Settings, val loop: Loop, val log: Log) {
    val allowance = Allowance(settings.limitMbit)
    val budget = WindowBudget(WINDOWS_MAX_BYTES)
    val byToken = HashMap<String, Tunnel>()
    var sessions = 0
    private val lookups = Executors.newFixedThreadPool(LOOKUP_THREADS) { Thread(it, "psx-lookup").apply { isDaemon = true } }
    private var lookingUp = 0

    val full get() = byToken.size + sessions >= MAX_TUNNELS

    fun stop() = byToken.values.toList().forEach { it.abort() }

    fun close() = lookups.shutdownNow().let { }

    /** Addresses of a name, told in the loop; a literal needs no resolver's thread. */
    fun lookup(host: String, told: (List<InetAddress>) -> Unit) {
        if (isLiteral(host)) {
            told(listOfNotNull(literal(host)))
            return
        }
        if (lookingUp >= LOOKUPS_MAX || !NAME.matches(host)) {
            told(emptyList())
            return
        }
        lookingUp++
        lookups.execute {
            val found = resolve(host)
            loop.execute {
                lookingUp--
                told(found)
            }
        }
    }

    private fun resolve(host: String): List<InetAddress> = try {
        InetAddress.getAllByName(host).toList()
    } catch (_: UnknownHostException) {
        emptyList()
    } catch (_: SecurityException) {
        emptyList()
    }

    private companion object {
        val NAME = Regex("[A-Za-z0-9._-]{1,253}")
    }
}

/** Dials a target as the egress policy lets, within a time; tells once, in the loop. */
class Dial(
    private val table: Table,
    private val host: String,
    private val port: Int,
    private val events: TargetEvents,
    private val opened: (Target) -> Unit,
    private val failed: (DialFailure) -> Unit,
) : TargetEvents by events {
    private var over = false
    private var target: Target? = null
    private var left = emptyList<InetAddress>()
    private val timer = table.loop.after((table.settings.times.dial * 1000).toLong()) {
        tell(DialFailure(Reason.TIMEOUT, "timeout", "dial timed out"))
    }

    fun start() = if (port !in 1..65_535) tell(policy("blocked_port")) else table.lookup(host, ::found)

    private fun policy(verdict: String) = DialFailure(Reason.EGRESS_POLICY, "connection_refused", "egress policy: $verdict")

    /** Every address that a name has must be allowed. */
    private fun found(addresses: List<InetAddress>) {
        if (over) return
        val own = table.settings.own.networks()
        val refused = addresses.firstNotNullOfOrNull { table.settings.policy.verdict(it, port, own) }
        when {
            addresses.isEmpty() -> tell(DialFailure(Reason.DNS_FAILED, "dns_failed", "name not found"))
            refused != null -> tell(policy(refused))
            else -> {
                left = addresses.take(ADDRESSES_TRIED)
                next()
            }
        }
    }

    private fun next() {
        val address = left.first()
        left = left.drop(1)
        try {
            target = Target(table.loop, InetSocketAddress(address, port), table.settings.bind, this)
        } catch (fault: IOException) {
            onFailed(fault)
        }
    }

    override fun onConnected() {
        if (over) return
        over = true
        table.loop.cancel(timer)
        opened(target!!)
    }

    override fun onFailed(fault: IOException) {
        if (over) return
        val refused = fault is ConnectException && fault.message.orEmpty().contains("refused", ignoreCase = true)
        when {
            left.isNotEmpty() -> next()
            refused -> tell(DialFailure(Reason.CONNECTION_REFUSED, "connection_refused", "refused"))
            else -> tell(DialFailure(Reason.UNREACHABLE, "unknown", "unreachable"))
        }
    }

    private fun tell(failure: DialFailure) {
        if (over) return
        cancel()
        failed(failure)
    }

    fun cancel() {
        over = true
        table.loop.cancel(timer)
        target?.close()
    }
}

/** A tunnel of binary-v2. */
class Tunnel(private val table: Table, token: String, private var socket: RelaySocket?, private var id: Int) :
    Sink, TargetEvents {
    val stream = Stream(this, token, table.budget)
    var movedNanos = System.nanoTime()
        private set
    private var target: Target? = null
    private var dial: Dial? = null
    private var expiry: Loop.Timer? = null // while the path is lost
    private var over = false
    private var targetEnded = false
    private var targetGone = false
    private val source = Holds({ target?.pause() }, { target?.resume() })
    private val sink = Holds({ stream.stall() }, { if (!over) stream.drained() })

    init {
        table.byToken[token] = this
    }

    fun start(given: OpenRequest) {
        dial = Dial(table, given.host, given.port, this, { opened(it, given.limit) }, { failure ->
            say(reasonFrame(Mux.REFUSED, id, failure.reason.code, failure.detail))
            leave()
        }).also { it.start() }
    }

    private fun opened(connection: Target, limit: Long) {
        val on = socket
        if (over || on == null) {
            connection.close()
            return
        }
        table.log.verbose("[TCP_OPEN_OK] $id")
        target = connection
        say(frame(Mux.OPENED, id, stream.told))
        stream.attach(on.outbox, id)
        stream.onOpened(limit)
    }

    private fun moved(size: Int, holds: Holds) {
        movedNanos = System.nanoTime()
        holds.addFor(table.allowance.spend(size), table.loop)
    }

    override fun onConnected() = Unit

    override fun onFailed(fault: IOException) = Unit

    override fun onData(data: ByteArray) {
        stream.write(data)
        moved(data.size, source)
    }

    override fun onEnd() {
        targetEnded = true
        stream.writeEof()
    }

    override fun onDrain() {
        if ((target?.queuedBytes ?: 0) <= TARGET_HIGH_BYTES / 4) sink.drop("buffer")
    }

    override fun onLost() {
        if (over) return
        targetGone = true
        sink.add("nobody reads")
        tellTargetIsGone()
    }

    /** What the target had said, and that it had ended, comes first; where the path is lost, another one. */
    private fun tellTargetIsGone() {
        if (socket == null || (targetEnded && !stream.delivered)) return
        say(reasonFrame(Mux.RESET, id, Reason.TARGET_RESET.code))
        abort()
    }

    override fun deliver(data: ByteArray) {
        moved(data.size, sink)
        val to = target ?: return
        to.write(data)
        if (to.queuedBytes > TARGET_HIGH_BYTES) sink.add("buffer")
    }

    override fun ended() {
        target?.end()
    }

    override fun pauseSource() = source.add("path")

    override fun resumeSource() = source.drop("path")

    /** A frame of the gateway. */
    fun receive(frame: Frame) {
        val early = target == null
        if (early && frame.type !in setOf(Mux.RESET, Mux.CLOSE, Mux.DATA)) return
        withRules {
            when (frame.type) {
                Mux.DATA -> stream.onData(frame.bytes())
                Mux.WINDOW -> stream.onWindow(frame.number(0), frame.number(8))
                Mux.BLOCKED -> stream.onBlocked(frame.number(0))
                Mux.EOF -> stream.onEof()
                Mux.CLOSE -> finish()
                Mux.RESET -> if (frame.bytes()[0].toInt() == Reason.PATH_LOST.code) pathLost() else abort()
                else -> Unit
            }
        }
    }

    private fun withRules(action: () -> Unit) {
        try {
            action()
            if (!over && stream.over) finish()
            if (!over && targetGone) tellTargetIsGone()
        } catch (fault: FlowViolation) {
            table.log.say("tunnel ended: ${fault.message}")
            say(reasonFrame(Mux.RESET, id, Reason.FLOW_VIOLATION.code))
            abort()
        }
    }

    fun resume(on: RelaySocket, tunnel: Int, received: Long, limit: Long) {
        socket?.forget(id)
        socket = on
        id = tunnel
        expectNothing()
        stream.attach(on.outbox, tunnel)
        say(frame(Mux.RESUMED, tunnel, stream.received, stream.told))
        withRules { stream.resume(received, limit) }
    }

    /** Wait for a resumption, for a while. */
    fun pathLost() {
        socket?.forget(id)
        socket = null
        stream.detach()
        expectNothing()
        if (target == null) {
            abort()
            return
        }
        expiry = table.loop.after((table.settings.times.resume * 1000).toLong()) { abort() }
    }

    /** One timer, however often a relay takes paths away. */
    private fun expectNothing() {
        table.loop.cancel(expiry)
        expiry = null
    }

    fun reaped() {
        say(reasonFrame(Mux.RESET, id, Reason.TIMEOUT.code))
        abort()
    }

    /** Over, and not cleanly. */
    fun abort() {
        leave()
        target?.reset()
    }

    /** Over, and cleanly: what the target has not read yet still leaves. */
    private fun finish() {
        leave()
        target?.flushAndClose(FLUSH_MAX_MS)
    }

    private fun leave() {
        over = true
        expectNothing()
        if (target == null) dial?.cancel()
        socket?.forget(id)
        socket = null
        stream.close()
        if (table.byToken[stream.token] === this) table.byToken.remove(stream.token)
    }

    private fun say(frame: ByteArray) {
        socket?.outbox?.send(frame)
    }
}

/** A session of binary-v1: it lives and ends with its socket. */
class Session(private val table: Table, private val socket: RelaySocket, private val id: String) : Lane, TargetEvents {
    private val prefix = binaryPrefix(id)
    private val pending = ArrayDeque<Chunk>()
    private val early = ArrayDeque<ByteArray>()
    private var earlyBytes = 0
    private var waiting = 0
    private var telling = false
    private var over = false
    private var target: Target? = null
    private var dial: Dial? = null
    private var blocked: Loop.Timer? = null
    private val source = Holds({ target?.pause() }, { target?.resume() })
    var movedNanos = System.nanoTime()
        private set

    init {
        table.sessions++
    }

    fun start(host: String, port: Int) {
        val began = System.nanoTime()
        dial = Dial(table, host, port, this, ::opened) { failure ->
            val told = over
            end()
            val tookMs = (System.nanoTime() - began) / 1_000_000
            if (!told) socket.openFailed(id, failure.word, failure.detail, tookMs)
        }.also { it.start() }
    }

    private fun opened(connection: Target) {
        if (over) {
            connection.close()
            return
        }
        table.log.verbose("[TCP_OPEN_OK] ${printable(id)}")
        target = connection
        socket.outbox.send(textFrame("tunnel_connected", mapOf("sessionId" to id)))
        early.forEach(connection::write)
        early.clear()
    }

    /** After the last bytes the end is told. */
    override fun take(maxBytes: Int): Any? {
        val chunk = pending.removeFirstOrNull()
        if (chunk != null) {
            waiting -= chunk.size
            if (waiting <= PENDING_HIGH_BYTES) source.drop("path")
            return prefix + chunk.data
        }
        if (!telling) return null
        telling = false
        return textFrame("tunnel_closed", mapOf("sessionId" to id))
    }

    private fun moved(size: Int, holds: Holds) {
        movedNanos = System.nanoTime()
        holds.addFor(table.allowance.spend(size), table.loop)
    }

    override fun onConnected() = Unit

    override fun onFailed(fault: IOException) = Unit

    override fun onData(data: ByteArray) {
        if (over) return
        pending.keep(Chunk(data))
        waiting += data.size
        moved(data.size, source)
        if (waiting > PENDING_HIGH_BYTES) source.add("path")
        socket.outbox.offer(this)
    }

    override fun onEnd() = closed()

    override fun onLost() = closed()

    override fun onDrain() {
        if ((target?.queuedBytes ?: 0) <= TARGET_HIGH_BYTES / 4) unblock()
    }

    fun toTarget(data: ByteArray) {
        moved(data.size, socket.reading)
        val to = target
        if (to == null) {
            early.addLast(data)
            earlyBytes += data.size
            if (earlyBytes > SESSION_QUEUE_BYTES) close()
            return
        }
        to.write(data)
        if (to.queuedBytes > TARGET_HIGH_BYTES && blocked == null) {
            socket.reading.add(this) // v1 has no other way to slow the relay down
            blocked = table.loop.after(BLOCKED_MAX_MS) { abort() }
        }
    }

    private fun unblock() {
        table.loop.cancel(blocked)
        blocked = null
        socket.reading.drop(this)
    }

    /** The target ended: the relay is told, after the last bytes. */
    private fun closed() {
        if (over) return
        telling = true
        end()
        socket.outbox.offer(this)
        target?.flushAndClose(FLUSH_MAX_MS)
    }

    /** The relay ended the session: what was written still leaves. */
    fun close() {
        end()
        target?.flushAndClose(FLUSH_MAX_MS)
    }

    fun abort() {
        if (over) return
        telling = true
        end()
        socket.outbox.offer(this)
        target?.reset()
    }

    private fun end() {
        if (over) return
        over = true
        if (target == null) dial?.cancel()
        unblock()
        socket.forget(id, this)
        table.sessions--
    }
}
