package psx.peer

import java.net.InetSocketAddress
import java.net.StandardSocketOptions
import java.nio.ByteBuffer
import java.nio.channels.CancelledKeyException
import java.nio.channels.SelectionKey
import java.nio.channels.Selector
import java.nio.channels.SocketChannel
import java.io.IOException
import java.util.PriorityQueue
import java.util.concurrent.ConcurrentLinkedQueue
import java.util.concurrent.atomic.AtomicBoolean

private const val TASKS_A_TURN = 256

/** One thread in which all of a device happens: tasks, timers, and the connections to targets. So nothing needs a lock. */
class Loop(private val failed: (Throwable) -> Unit) {
    class Timer(val atNanos: Long, val action: () -> Unit) : Comparable<Timer> {
        override fun compareTo(other: Timer) = (atNanos - other.atNanos).compareTo(0)
    }

    private val selector = Selector.open()
    private val tasks = ConcurrentLinkedQueue<() -> Unit>()
    private val timers = PriorityQueue<Timer>()
    private val waking = AtomicBoolean()
    private val thread = Thread({ run() }, "psx-peer").apply { isDaemon = true }
    val buffer: ByteBuffer = ByteBuffer.allocateDirect(DATA_MAX_BYTES)

    @Volatile private var running = true

    fun start() = thread.start()

    fun execute(task: () -> Unit) {
        tasks.add(task)
        if (waking.compareAndSet(false, true)) selector.wakeup()
    }

    /** Only in the loop. */
    fun after(millis: Long, action: () -> Unit): Timer =
        Timer(System.nanoTime() + millis * 1_000_000, action).also(timers::add)

    /** Only in the loop. It is forgotten at once: whoever makes and cancels many leaves nothing behind. */
    fun cancel(timer: Timer?) {
        if (timer != null) timers.remove(timer)
    }

    fun register(channel: SocketChannel, ops: Int, on: Target): SelectionKey = channel.register(selector, ops, on)

    fun stop() {
        running = false
        selector.wakeup()
        thread.join(2000)
    }

    private fun run() {
        try {
            while (running) turn()
        } catch (fault: Throwable) {
            failed(fault)
        }
    }

    private fun turn() {
        val next = timers.peek()
        val waitMs = next?.let { (it.atNanos - System.nanoTime()) / 1_000_000 + 1 }
        when {
            tasks.isNotEmpty() || (waitMs != null && waitMs <= 0) -> selector.selectNow()
            waitMs == null -> selector.select()
            else -> selector.select(waitMs)
        }
        waking.set(false)
        for (turn in 0 until TASKS_A_TURN) (tasks.poll() ?: break)()
        val now = System.nanoTime()
        while (timers.isNotEmpty() && timers.peek().atNanos - now <= 0) {
            timers.poll().action()
        }
        val keys = selector.selectedKeys().toList()
        selector.selectedKeys().clear()
        for (key in keys) (key.attachment() as Target).ready()
    }
}

interface TargetEvents {
    fun onConnected()

    fun onFailed(fault: IOException)

    fun onData(data: ByteArray)

    fun onEnd()

    fun onDrain()

    fun onLost()
}

/** A connection to a target: non-blocking, its writes in order. */
class Target(private val loop: Loop, address: InetSocketAddress, bind: String?, private val events: TargetEvents) {
    private val channel: SocketChannel = SocketChannel.open()
    private val key: SelectionKey
    private val queue = ArrayDeque<ByteBuffer>()
    private var connected = false
    private var reading = true
    private var ended = false // the target's direction
    private var ending = false // ours, when all is written
    private var closing = false
    var closed = false
        private set
    var queuedBytes = 0
        private set

    init {
        channel.configureBlocking(false)
        channel.setOption(StandardSocketOptions.TCP_NODELAY, true)
        if (bind != null) channel.bind(InetSocketAddress(bind, 0))
        key = loop.register(channel, SelectionKey.OP_CONNECT, this)
        try {
            if (channel.connect(address)) loop.execute(::ready)
        } catch (fault: IOException) {
            loop.execute { fail(fault) }
        }
    }

    fun ready() {
        if (closed) return
        try {
            if (!connected) {
                connect()
                return
            }
            val ops = key.readyOps()
            if (ops and SelectionKey.OP_WRITE != 0) flush()
            if (!closed && ops and SelectionKey.OP_READ != 0 && reading) read()
        } catch (fault: IOException) {
            lost()
        } catch (_: CancelledKeyException) {
            lost()
        }
    }

    private fun connect() {
        try {
            if (!channel.finishConnect()) return
        } catch (fault: IOException) {
            fail(fault)
            return
        }
        connected = true
        interest()
        events.onConnected()
    }

    private fun fail(fault: IOException) {
        if (closed) return
        close()
        events.onFailed(fault)
    }

    private fun read() {
        val buffer = loop.buffer.clear()
        val count = channel.read(buffer)
        if (count > 0) {
            val data = ByteArray(count)
            buffer.flip()
            buffer.get(data)
            if (!closing) events.onData(data)
        } else if (count < 0) {
            ended = true
            interest()
            if (closing) finish() else events.onEnd()
        }
    }

    fun write(data: ByteArray) {
        if (closed || ending) return
        queue.addLast(ByteBuffer.wrap(data))
        queuedBytes += data.size
        if (queue.size == 1) flushSoon()
    }

    private fun flushSoon() {
        try {
            if (connected) flush()
        } catch (_: IOException) {
            loop.execute(::lost)
        }
    }

    private fun flush() {
        val before = queuedBytes
        while (queue.isNotEmpty()) {
            val first = queue.first()
            queuedBytes -= channel.write(first)
            if (first.hasRemaining()) break
            queue.removeFirst()
        }
        if (queue.isEmpty() && ending) finish()
        if (!closed) interest()
        if (queuedBytes < before && !closing) events.onDrain()
    }

    /** Our direction ends when all is written. */
    fun end() {
        if (closed || ending) return
        ending = true
        flushSoon()
    }

    private fun finish() {
        if (queue.isNotEmpty() || !ending || closed) return
        if (closing && ended) {
            close()
            return
        }
        channel.shutdownOutput()
    }

    /** What was written still leaves; what the target still says is nobody's. */
    fun flushAndClose(withinMs: Long) {
        if (closed) return
        closing = true
        reading = true
        ending = true
        flushSoon()
        if (!closed) {
            interest()
            loop.after(withinMs) { close() }
        }
    }

    fun pause() {
        reading = false
        interest()
    }

    fun resume() {
        reading = true
        interest()
    }

    private fun interest() {
        if (closed || !connected || !key.isValid) return
        val read = if (reading && !ended) SelectionKey.OP_READ else 0
        val write = if (queue.isNotEmpty()) SelectionKey.OP_WRITE else 0
        key.interestOps(read or write)
    }

    private fun lost() {
        if (closed) return
        close()
        if (!closing) events.onLost()
    }

    fun reset() {
        if (closed) return
        try {
            channel.setOption(StandardSocketOptions.SO_LINGER, 0)
        } catch (_: IOException) {
            // it is gone already
        }
        close()
    }

    fun close() {
        closed = true
        queue.clear()
        queuedBytes = 0
        try {
            channel.close()
        } catch (_: IOException) {
            // nothing is left to lose
        }
    }
}
