package psx.peer

import java.io.IOException
import java.io.OutputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.SecureRandom
import java.util.concurrent.LinkedBlockingQueue
import java.util.concurrent.atomic.AtomicLong

private const val TEXT = 0x81
private const val BINARY = 0x82
private const val MASKED = 0x80
private const val PAYLOAD_AT = 16 // with room for the longest head before it
private const val OVERHEAD_BYTES = 64

/**
 * Messages for a relay (RFC 6455 section 5), in order, from a thread of their own. The library reads, and says what is short:
 * pongs and the close. It masks byte by byte, and that would cost more than all the rest of a device. A message is one write,
 * so those of both never mix.
 */
class FrameWriter(private val out: OutputStream, private val lowBytes: Long, private val low: () -> Unit, private val failed: () -> Unit) {
    private val queue = LinkedBlockingQueue<Any>()
    private val waiting = AtomicLong()
    private val random = SecureRandom()
    private var buffer = ByteBuffer.allocate(0)

    /** What has not left yet. When it has fallen to `lowBytes`, `low` is told. */
    val waitingBytes get() = waiting.get()

    fun start() = apply { Thread({ run() }, "psx-writer").apply { isDaemon = true }.start() }

    /** Bytes, or a String of text. */
    fun send(message: Any) {
        waiting.addAndGet(cost(message))
        queue.add(message)
    }

    /** Nothing follows what was sent: then do this. */
    fun end(last: () -> Unit) {
        queue.add(Runnable(last))
    }

    /** Nothing leaves any more. Whoever calls it closes the connection: a write may be under way. */
    fun stop() {
        queue.clear()
        end {}
    }

    private fun cost(message: Any): Long =
        OVERHEAD_BYTES + if (message is ByteArray) message.size.toLong() else (message as String).length.toLong()

    private fun run() {
        try {
            while (true) {
                val next = queue.take()
                if (next is Runnable) {
                    next.run()
                    return
                }
                write(next)
                val size = cost(next)
                val before = waiting.getAndAdd(-size)
                if (before > lowBytes && before - size <= lowBytes) low()
            }
        } catch (_: IOException) {
            failed()
        }
    }

    fun write(message: Any) {
        if (message is ByteArray) write(BINARY, message) else write(TEXT, (message as String).toByteArray())
    }

    private fun write(kind: Int, payload: ByteArray) {
        val size = payload.size
        if (buffer.capacity() < PAYLOAD_AT + size + Long.SIZE_BYTES) {
            buffer = ByteBuffer.allocate(PAYLOAD_AT + size + Long.SIZE_BYTES).order(ByteOrder.nativeOrder())
        }
        val room = buffer
        payload.copyInto(room.array(), PAYLOAD_AT)
        val key = random.nextInt()
        room.putInt(PAYLOAD_AT - Int.SIZE_BYTES, key)
        val keys = key.toLong() shl Int.SIZE_BITS or (key.toLong() and 0xffff_ffffL)
        for (at in PAYLOAD_AT until PAYLOAD_AT + size step Long.SIZE_BYTES) room.putLong(at, room.getLong(at) xor keys)
        val lengthBytes = if (size < 126) 0 else if (size < 65_536) Short.SIZE_BYTES else Long.SIZE_BYTES
        for (digit in 0 until lengthBytes) {
            room.put(PAYLOAD_AT - Int.SIZE_BYTES - 1 - digit, if (digit < Int.SIZE_BYTES) (size shr 8 * digit).toByte() else 0)
        }
        val start = PAYLOAD_AT - Int.SIZE_BYTES - lengthBytes - 2
        room.put(start, kind.toByte())
        room.put(start + 1, (MASKED or if (lengthBytes == 0) size else if (lengthBytes == 2) 126 else 127).toByte())
        out.write(room.array(), start, PAYLOAD_AT + size - start)
    }
}
