package psx.peer

// One end of a binary-v2 tunnel: what may be sent, what was taken, what is kept for a resumption. No I/O, no clock, one thread.
// Its rules are those of docs/protocol/binary-v2-stream.json.

const val WINDOW_START_BYTES = 256L * 1024
private const val WINDOW_MAX_BYTES = 4L * 1024 * 1024
const val PENDING_HIGH_BYTES = 64 * 1024
private const val SMALL_BYTES = 1024
private const val JOINED_MAX_BYTES = 4096
private const val APART_MAX = 64 // small pieces that are kept as they came: each takes a hundred bytes besides its own

/** The other end sent beyond its limit, or acknowledged what was never sent. */
class FlowViolation(message: String) : Exception(message)

/** The connection that a stream feeds and is fed by. */
interface Sink {
    fun deliver(data: ByteArray)

    fun ended()

    fun pauseSource()

    fun resumeSource()
}

/** Something with frames to send over a shared socket. */
interface Lane {
    /** The next frame (bytes, or a String of text) of at most so much payload; null when there is none now. */
    fun take(maxBytes: Int): Any?
}

/** Bytes that are kept, from an offset on. */
class Chunk(val data: ByteArray, val from: Int = 0) {
    val size get() = data.size - from

    fun after(count: Int) = Chunk(data, from + count)

    fun first(count: Int) = Chunk(data.copyOfRange(from, from + count))

    fun and(other: Chunk) = Chunk(
        ByteArray(size + other.size).also {
            data.copyInto(it, 0, from)
            other.data.copyInto(it, size, other.from)
        },
    )
}

/** Keep a piece; of small ones many are joined, and leave as one frame where they wait. */
fun ArrayDeque<Chunk>.keep(piece: Chunk) {
    if (piece.size >= SMALL_BYTES || size < APART_MAX || last().size >= JOINED_MAX_BYTES) {
        addLast(piece)
    } else {
        addLast(removeLast().and(piece))
    }
}

/** One socket's way out: control frames leave at once, data goes round-robin while the socket has room. */
class Outbox(private val sendFrame: (Any) -> Unit) {
    private val ready = ArrayDeque<Lane>()
    private val waiting = HashSet<Lane>()
    private var pumping = false
    var paused = false

    fun send(frame: Any) = sendFrame(frame)

    fun offer(lane: Lane) {
        if (waiting.add(lane)) {
            ready.addLast(lane)
            pump()
        }
    }

    fun withdraw(lane: Lane) {
        if (waiting.remove(lane)) ready.remove(lane)
    }

    fun resume() {
        paused = false
        pump()
    }

    private fun pump() {
        if (pumping) return
        pumping = true
        while (ready.isNotEmpty() && !paused) {
            val lane = ready.removeFirst()
            waiting.remove(lane)
            val frame = lane.take(DATA_MAX_BYTES) ?: continue
            if (waiting.add(lane)) ready.addLast(lane)
            sendFrame(frame)
        }
        pumping = false
    }
}

/** How much all windows of a device may grow by together. */
class WindowBudget(private var left: Long) {
    fun draw(size: Long): Boolean = (size <= left).also { if (it) left -= size }

    fun giveBack(size: Long) {
        left += size
    }
}

class Stream(
    private val sink: Sink,
    val token: String,
    private val budget: WindowBudget,
    private var window: Long = WINDOW_START_BYTES,
) : Lane {
    private var outbox: Outbox? = null
    private var id = 0
    private var drawn = 0L

    // sending: [acked, sent) is kept in unacked, then comes pending
    private var limit = 0L
    private var blockedAt = -1L
    private var acked = 0L
    private var sent = 0L
    private val unacked = ArrayDeque<Chunk>()
    private val pending = ArrayDeque<Chunk>()
    private var pendingBytes = 0L
    private var held = false
    private var eofWanted = false
    private var eofSent = false

    // receiving
    var received = 0L
        private set
    var told = window
        private set
    private var limits = listOf(window)
    private var grownAt = 0L
    private var stalled = false
    var eofReceived = false
        private set

    /** All that was written here, and the EOF after it, has been taken by the other end. */
    val delivered get() = eofSent && acked == sent

    val over get() = eofReceived && delivered

    fun attach(to: Outbox, tunnel: Int) {
        detach()
        outbox = to
        id = tunnel
    }

    fun detach() {
        outbox?.withdraw(this)
        outbox = null
    }

    /** The other end has `received`: what came after is sent again, after what came here was acknowledged. */
    fun resume(received: Long, limit: Long) {
        acknowledge(received)
        if (eofSent && acked < sent) {
            eofSent = false
            sent--
        }
        while (unacked.isNotEmpty()) pending.addFirst(unacked.removeLast())
        pendingBytes += sent - acked
        sent = acked
        this.limit = maxOf(this.limit, limit)
        blockedAt = -1
        val grants = !stalled && !eofReceived
        tell(maxOf(told, if (grants) this.received + window else this.received))
        holdOrRelease()
        offer()
    }

    fun close() {
        detach()
        budget.giveBack(drawn)
        drawn = 0
        eofWanted = true
        pending.clear()
        unacked.clear()
    }

    fun write(data: ByteArray) {
        if (eofWanted) return
        pending.keep(Chunk(data))
        pendingBytes += data.size
        offer()
        holdOrRelease()
    }

    fun writeEof() {
        if (eofWanted) return
        eofWanted = true
        offer()
    }

    fun stall() {
        stalled = true
    }

    fun drained() {
        stalled = false
        grant()
    }

    fun onOpened(limit: Long) {
        this.limit = maxOf(this.limit, limit)
        offer()
    }

    fun onData(data: ByteArray) {
        if (data.isEmpty() || eofReceived || received + data.size > told) {
            throw FlowViolation("data beyond the limit, after EOF, or none")
        }
        received += data.size
        sink.deliver(data)
        if (!stalled) grant()
    }

    fun onEof() {
        if (eofReceived) throw FlowViolation("second EOF")
        eofReceived = true
        received++
        tell(maxOf(told, received))
        sink.ended()
    }

    fun onWindow(received: Long, limit: Long) {
        acknowledge(received)
        if (limit > this.limit) {
            this.limit = limit
            if (pending.isNotEmpty()) offer()
        }
    }

    /** Doubles the window when the sender filled one of the limits it was last told and the sink keeps up. */
    fun onBlocked(limit: Long) {
        if (stalled || eofReceived || window >= WINDOW_MAX_BYTES) return
        if (limit !in limits || received < limit || limit <= grownAt || !budget.draw(window)) return
        grownAt = limit
        drawn += window
        window *= 2
        tell(received + window)
    }

    override fun take(maxBytes: Int): ByteArray? {
        val out = outbox ?: return null
        if (pending.isEmpty()) {
            if (!eofWanted || eofSent) return null
            eofSent = true
            sent++
            return frame(Mux.EOF, id)
        }
        val credit = minOf(limit - sent, acked + WINDOW_MAX_BYTES - sent, maxBytes.toLong())
        if (credit <= 0) {
            if (blockedAt != limit) {
                blockedAt = limit
                out.send(frame(Mux.BLOCKED, id, limit))
            }
            return null
        }
        var chunk = pending.removeFirst()
        if (chunk.size > credit) {
            pending.addFirst(chunk.after(credit.toInt()))
            chunk = chunk.first(credit.toInt())
        }
        sent += chunk.size
        pendingBytes -= chunk.size
        unacked.keep(chunk)
        holdOrRelease()
        return dataFrame(Mux.DATA, id, chunk.data, chunk.from, chunk.size)
    }

    private fun offer() {
        outbox?.offer(this)
    }

    private fun holdOrRelease() {
        val full = pendingBytes > PENDING_HIGH_BYTES
        if (full == held) return
        held = full
        if (full) sink.pauseSource() else sink.resumeSource()
    }

    private fun acknowledge(received: Long) {
        if (received > sent) throw FlowViolation("acknowledges what was not sent")
        if (received <= acked) return
        var gone = received - acked
        acked = received
        while (gone > 0 && unacked.isNotEmpty()) {
            val first = unacked.removeFirst()
            if (first.size > gone) {
                unacked.addFirst(first.after(gone.toInt()))
                gone = 0
            } else {
                gone -= first.size
            }
        }
    }

    /** Tell of new room when it is worth a frame. */
    private fun grant() {
        val limit = received + window
        if (!eofReceived && limit - told >= window / 2) tell(limit)
    }

    /** What cannot be told now is told by `resume`. */
    private fun tell(limit: Long) {
        val out = outbox ?: return
        if (limit > told) {
            told = limit
            limits = listOf(limit) + limits.take(3)
        }
        out.send(frame(Mux.WINDOW, id, received, limit))
    }
}
