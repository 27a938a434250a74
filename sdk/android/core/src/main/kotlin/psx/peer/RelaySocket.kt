package psx.peer

import java.io.FilterInputStream
import java.io.IOException
import java.io.InputStream
import java.io.OutputStream
import java.net.InetAddress
import java.net.InetSocketAddress
import java.net.Socket
import java.util.concurrent.Semaphore
import java.util.concurrent.TimeUnit
import java.util.concurrent.atomic.AtomicBoolean
import java.util.concurrent.atomic.AtomicLong
import javax.net.SocketFactory
import javax.net.ssl.SSLSocketFactory
import okhttp3.OkHttpClient
import okhttp3.Request
import okhttp3.Response
import okhttp3.WebSocket
import okhttp3.WebSocketListener
import okio.ByteString

private const val MESSAGE_MAX_BYTES = 4 * 1024 * 1024 + 512
private const val SURPLUS_MAX_BYTES = MESSAGE_MAX_BYTES + 1024 * 1024
private const val OVERHEAD_BYTES = 128
private const val INBOX_BYTES = 8 * 1024 * 1024
private const val WRITE_HIGH_BYTES = 256 * 1024L
private const val UNSENT_MAX_BYTES = 2 * 1024 * 1024L
private const val GOODBYE_MS = 1000L
private const val CONNECT_TIMEOUT_S = 15L
private const val SUBPROTOCOL = "Sec-WebSocket-Protocol"
private const val EXTENSIONS = "Sec-WebSocket-Extensions"
const val LOST = 1006
const val IDENTITY_INVALID = 4001
const val IDENTITY_REVOKED = 4002
const val REDIRECTED = 4100

/** Bounds what a relay may send besides whole messages: the library itself would buffer a message, or pings, of any size. */
private class Inflow {
    private val raw = AtomicLong()
    private val explained = AtomicLong()

    fun read(count: Int) {
        if (count > 0 && raw.addAndGet(count.toLong()) - explained.get() > SURPLUS_MAX_BYTES) {
            throw IOException("a message is too long")
        }
    }

    fun message(size: Int) {
        explained.addAndGet(size + size / 64L + OVERHEAD_BYTES)
    }
}

/** Each write is whole, whoever else writes. (Those of TLS are.) */
private class WholeWrites(private val to: OutputStream) : OutputStream() {
    override fun write(byte: Int) = synchronized(this) { to.write(byte) }

    override fun write(from: ByteArray, at: Int, length: Int) = synchronized(this) { to.write(from, at, length) }

    override fun flush() = to.flush()

    override fun close() = to.close()
}

private class CountingSocket(private val inflow: Inflow) : Socket() {
    private val output by lazy { WholeWrites(super.getOutputStream()) }

    override fun getOutputStream(): OutputStream = output

    override fun getInputStream(): InputStream = object : FilterInputStream(super.getInputStream()) {
        override fun read(): Int = super.read().also { if (it >= 0) inflow.read(1) }

        override fun read(into: ByteArray, at: Int, length: Int): Int = super.read(into, at, length).also(inflow::read)
    }
}

private class CountingSockets(private val bind: String?, private val inflow: Inflow, private val made: (Socket) -> Unit) :
    SocketFactory() {
    override fun createSocket(): Socket =
        CountingSocket(inflow).apply { if (bind != null) bind(InetSocketAddress(bind, 0)) }.also(made)

    override fun createSocket(host: String?, port: Int): Socket = throw UnsupportedOperationException()

    override fun createSocket(host: String?, port: Int, local: InetAddress?, localPort: Int): Socket =
        throw UnsupportedOperationException()

    override fun createSocket(host: InetAddress?, port: Int): Socket = throw UnsupportedOperationException()

    override fun createSocket(host: InetAddress?, port: Int, local: InetAddress?, localPort: Int): Socket =
        throw UnsupportedOperationException()
}

/** Tells of the sockets that it makes: what is written besides the library goes through them. */
private class ToldSockets(private val by: SSLSocketFactory, private val made: (Socket) -> Unit) : SSLSocketFactory() {
    override fun getDefaultCipherSuites(): Array<String> = by.defaultCipherSuites

    override fun getSupportedCipherSuites(): Array<String> = by.supportedCipherSuites

    override fun createSocket(on: Socket?, host: String?, port: Int, autoClose: Boolean): Socket =
        by.createSocket(on, host, port, autoClose).also(made)

    override fun createSocket(host: String?, port: Int): Socket = throw UnsupportedOperationException()

    override fun createSocket(host: String?, port: Int, local: InetAddress?, localPort: Int): Socket =
        throw UnsupportedOperationException()

    override fun createSocket(host: InetAddress?, port: Int): Socket = throw UnsupportedOperationException()

    override fun createSocket(host: InetAddress?, port: Int, local: InetAddress?, localPort: Int): Socket =
        throw UnsupportedOperationException()
}

/** One socket to a relay: upgrade, device_info, heartbeats, and its tunnels. All but the listener happens in the loop. */
class RelaySocket(private val device: Device, private val identity: Identity, private val url: String) :
    WebSocketListener() {
    private val settings = device.settings
    private val loop = device.loop
    private val table = device.table
    private val log = device.log
    private val inflow = Inflow()
    private val inbox = Semaphore(INBOX_BYTES)
    private val gate = Gate()
    private lateinit var ws: WebSocket
    private var writer: FrameWriter? = null

    @Volatile private var line: Socket? = null // the newest is the one that the library uses: it tries one after the other
    private lateinit var gone: (Int) -> Unit
    private val tunnels = HashMap<Int, Tunnel>()
    private val sessions = HashMap<String, Session>()
    private var v2 = false
    private var leaving = false
    private var code: Int? = null
    private var finished = false
    private var heardNanos = System.nanoTime()
    private var beatNanos = heardNanos
    private var wallMs = System.currentTimeMillis()
    val outbox = Outbox(::sendFrame)
    val reading = Holds({ gate.shut() }, { gate.open() })
    var stands = false
        private set
    var connected = false
        private set

    /** Holds the library's reader thread while a target of v1 holds the socket up. */
    private class Gate {
        private val open = Object()
        private var shut = false

        fun shut() = synchronized(open) { shut = true }

        fun open() = synchronized(open) {
            shut = false
            open.notifyAll()
        }

        fun pass() = synchronized(open) { while (shut) open.wait() }
    }

    /** Serve until the socket ends; `gone` is told the close code, in the loop. */
    fun start(client: OkHttpClient, gone: (Int) -> Unit) {
        this.gone = gone
        val own = client.newBuilder()
            .socketFactory(CountingSockets(settings.bind, inflow) { line = it })
            .sslSocketFactory(ToldSockets(client.sslSocketFactory) { line = it }, client.x509TrustManager!!)
            .connectTimeout(CONNECT_TIMEOUT_S, TimeUnit.SECONDS)
            .readTimeout(CONNECT_TIMEOUT_S, TimeUnit.SECONDS)
            .addInterceptor { chain -> // no compression: a small frame must not become a large message
                val answer = chain.proceed(chain.request().newBuilder().removeHeader(EXTENSIONS).build())
                if (answer.header(EXTENSIONS) != null) throw IOException("an extension that was not offered")
                answer
            }.build()
        val request = try {
            Request.Builder().url(url).header(SUBPROTOCOL, "token.${identity.token}").build()
        } catch (_: IllegalArgumentException) {
            loop.execute { end(LOST) }
            return
        }
        ws = own.newWebSocket(request, this)
    }

    // the library's threads

    override fun onOpen(webSocket: WebSocket, response: Response) {
        val selected = response.header(SUBPROTOCOL) == "token.${identity.token}"
        val out = line!!.getOutputStream()
        loop.execute { if (selected) opened(out) else lose("relay did not select this device's token") }
    }

    override fun onMessage(webSocket: WebSocket, text: String) = arrived(text.length) {
        if (text.length > TEXT_MAX_BYTES) throw Malformed("text frame too long")
        onText(parseText(text))
    }

    override fun onMessage(webSocket: WebSocket, bytes: ByteString) = arrived(bytes.size) {
        val raw = bytes.toByteArray()
        if (v2) parseMux(raw)?.let(::onFrame) else onBinary(parseBinary(raw))
    }

    private fun arrived(size: Int, action: () -> Unit) {
        inflow.message(size)
        gate.pass()
        val room = minOf(size + OVERHEAD_BYTES, INBOX_BYTES)
        inbox.acquire(room)
        loop.execute {
            inbox.release(room)
            if (!finished && code == null) taken(action)
        }
    }

    private fun taken(action: () -> Unit) {
        heardNanos = System.nanoTime()
        try {
            action()
        } catch (fault: Malformed) {
            finish(1002, fault.message.orEmpty())
        }
    }

    override fun onClosing(webSocket: WebSocket, code: Int, reason: String) {
        webSocket.close(1000, null)
        loop.execute { end(code) }
    }

    override fun onClosed(webSocket: WebSocket, code: Int, reason: String) = loop.execute { end(code) }

    override fun onFailure(webSocket: WebSocket, t: Throwable, response: Response?) =
        loop.execute { end(if (response?.code == 401) IDENTITY_INVALID else LOST) }

    // the loop

    private fun opened(out: OutputStream) {
        if (finished) return
        stands = true
        val failed = { loop.execute { loop.after(GOODBYE_MS) { end(LOST) } } } // the relay may have said why
        writer = FrameWriter(out, WRITE_HIGH_BYTES / 2, { loop.execute(::goOn) }, failed).start()
        heardNanos = System.nanoTime()
        wallMs = System.currentTimeMillis()
        text(
            "device_info", "country" to settings.country, "carrier" to "", "currentIp" to "auto",
            "protocol" to settings.protocol, "supportsRelayRedirect" to settings.relay.isEmpty(),
            "sdkVersion" to settings.sdkVersion,
            "model" to settings.model, "osVersion" to settings.osVersion,
        )
        tickLater()
    }

    private fun end(why: Int) {
        if (finished) return
        finished = true
        gate.open()
        tunnels.values.toList().forEach { it.pathLost() }
        sessions.values.toList().forEach { it.abort() }
        writer?.stop()
        if (::ws.isInitialized) ws.cancel()
        gone(code ?: why)
    }

    private fun lose(why: String) {
        log.say(why)
        end(LOST)
    }

    /** Close with a code, and leave the relay a moment to read it. */
    private fun finish(why: Int, reason: String) {
        if (code != null || finished) return
        code = why
        gate.open()
        val goodbye = { ws.close(why, reason.take(100)) }
        writer?.end { goodbye() } ?: goodbye()
        loop.after(GOODBYE_MS) { end(why) }
    }

    fun stop() {
        sessions.values.toList().forEach { it.abort() }
        if (stands) finish(1000, "stopped by its owner") else end(LOST)
    }

    private fun tickLater() {
        val everyMs = (minOf(settings.times.tick, settings.times.heartbeat) * 1000).toLong()
        loop.after(everyMs) {
            if (!finished && code == null) {
                tick(everyMs)
                tickLater()
            }
        }
    }

    /** A tick that comes late by the wall clock means that the device slept: the path then has `wake` to prove itself. */
    private fun tick(everyMs: Long) {
        val times = settings.times
        val streams = v2 && tunnels.isNotEmpty()
        val deadAfter = if (streams) times.streamsDead else times.dead
        val now = System.nanoTime()
        val wall = System.currentTimeMillis()
        val slept = wall - wallMs - everyMs > times.wake * 1000
        wallMs = wall
        if (slept) heardNanos = now - (maxOf(0.0, deadAfter - times.wake) * 1e9).toLong()
        val silent = (now - heardNanos) / 1e9
        if (silent > deadAfter && !reading.any) {
            lose("relay is silent: dialling again")
            return
        }
        if (streams && silent >= times.tick) outbox.send(dataFrame(Mux.PING, 0, ByteArray(8)))
        if (connected && (slept || (now - beatNanos) / 1e9 >= times.heartbeat - everyMs / 2000.0)) {
            beatNanos = now
            text("heartbeat")
        }
        val oldest = now - (times.idle * 1e9).toLong()
        tunnels.values.filter { it.movedNanos - oldest < 0 }.forEach { it.reaped() }
        sessions.values.filter { it.movedNanos - oldest < 0 }.forEach { it.abort() }
    }

    private fun onText(given: Text) {
        val id = given.text("sessionId")
        when (given.type) {
            "connected" -> {
                settings.own.told(given.text("ip"))
                v2 = given.text("protocol") == PROTOCOL_V2 && settings.protocol == PROTOCOL_V2
                connected = true
                log.say("[CONNECTED] device=${printable(given.text("deviceId"))}")
            }
            "heartbeat_ack" -> log.verbose("[ACK]")
            "error" -> log.say("relay says: ${printable(given.text("message"))}")
            "relay_redirect" -> if (device.mayFollow(identity, url, given.text("relay"))) {
                finish(REDIRECTED, "redirect followed")
            }
            "rotate_ip_request" -> text( // this peer shares a connection and does not command it
                "rotation_complete", "requestId" to given.text("requestId"), "success" to false, "error" to "not_supported",
            )
            "tunnel_connect" -> openSession(id, given.text("host"), given.integer("port"))
            "tunnel_data" -> sessions[id]?.toTarget(legacyBytes(given.text("data")))
            "tunnel_close" -> sessions[id]?.close()
        }
    }

    private fun legacyBytes(text: String): ByteArray = try {
        java.util.Base64.getDecoder().decode(text)
    } catch (_: IllegalArgumentException) {
        throw Malformed("tunnel_data is not base64")
    }

    private fun onBinary(given: BinaryV1) {
        val session = sessions[given.id] ?: return
        if (given.close) session.close() else session.toTarget(given.payload)
    }

    private fun openSession(id: String, host: String, port: Int) {
        if (id.isEmpty() || id in sessions) return
        if (table.full) {
            openFailed(id, "unknown", "too many tunnels", 0)
            return
        }
        log.verbose("[TUNNEL_CONNECT] ${printable(host)}:$port")
        val session = Session(table, this, id)
        sessions[id] = session
        session.start(host, port)
    }

    fun openFailed(id: String, word: String, detail: String, tookMs: Long) =
        text("tunnel_open_failed", "sessionId" to id, "reason" to word, "detail" to detail, "durationMs" to tookMs)

    private fun onFrame(frame: Frame) {
        val tunnel = tunnels[frame.tunnel]
        val starts = frame.type == Mux.OPEN || frame.type == Mux.RESUME
        when {
            tunnel != null && starts -> throw Malformed("tunnel id is in use")
            tunnel != null -> tunnel.receive(frame)
            frame.type == Mux.OPEN -> open(frame.tunnel, parseOpen(frame))
            frame.type == Mux.RESUME -> resume(frame)
            frame.type == Mux.PING -> outbox.send(dataFrame(Mux.PONG, 0, frame.bytes()))
            frame.type == Mux.GOAWAY && !leaving -> { // the first one counts
                leaving = true
                val waitMs = frame.body.getInt(frame.body.position()).toLong() and 0xffff_ffffL
                loop.after(waitMs) {
                    if (!finished && code == null) {
                        device.moveOn(identity, url)
                        finish(REDIRECTED, "relay goes away")
                    }
                }
            }
        }
    }

    private fun open(id: Int, given: OpenRequest) {
        log.verbose("[TUNNEL_CONNECT] ${printable(given.host)}:${given.port}")
        if (table.full || given.token in table.byToken) {
            outbox.send(reasonFrame(Mux.REFUSED, id, Reason.TOO_MANY_TUNNELS.code))
            return
        }
        val tunnel = Tunnel(table, given.token, this, id)
        tunnels[id] = tunnel
        tunnel.start(given)
    }

    private fun resume(frame: Frame) {
        val tunnel = table.byToken[hex(frame.bytes().copyOf(TOKEN_BYTES))]
        if (tunnel == null) {
            outbox.send(reasonFrame(Mux.REFUSED, frame.tunnel, Reason.UNKNOWN_TUNNEL.code))
            return
        }
        tunnels[frame.tunnel] = tunnel
        tunnel.resume(this, frame.tunnel, frame.number(TOKEN_BYTES), frame.number(TOKEN_BYTES + 8))
    }

    fun forget(id: Int) {
        tunnels.remove(id)
    }

    fun forget(id: String, session: Session) {
        if (sessions[id] === session) sessions.remove(id)
    }

    private fun text(type: String, vararg payload: Pair<String, Any>) = outbox.send(textFrame(type, mapOf(*payload)))

    private fun sendFrame(frame: Any) {
        val to = writer
        if (finished || code != null || to == null) return
        if (to.waitingBytes > UNSENT_MAX_BYTES) { // a relay that asks and asks but never reads is left
            lose("relay does not read")
            return
        }
        to.send(frame)
        if (to.waitingBytes > WRITE_HIGH_BYTES) outbox.paused = true
    }

    private fun goOn() {
        if (!finished && outbox.paused) outbox.resume()
    }
}
