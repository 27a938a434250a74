package psx.peer

import com.google.gson.Gson
import com.google.gson.JsonObject
import com.google.gson.JsonParseException
import com.google.gson.JsonParser
import java.io.IOException
import java.net.Proxy
import java.nio.file.AtomicMoveNotSupportedException
import java.nio.file.Files
import java.nio.file.Path
import java.nio.file.StandardCopyOption.ATOMIC_MOVE
import java.nio.file.StandardCopyOption.REPLACE_EXISTING
import java.nio.file.attribute.PosixFilePermissions
import java.security.MessageDigest
import java.security.SecureRandom
import java.time.LocalTime
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import kotlin.random.Random
import okhttp3.Call
import okhttp3.Callback
import okhttp3.HttpUrl.Companion.toHttpUrl
import okhttp3.MediaType.Companion.toMediaType
import okhttp3.OkHttpClient
import okhttp3.Request
import okhttp3.RequestBody.Companion.toRequestBody
import okhttp3.Response

const val VERSION = "0.1.0"
const val TERMS_VERSION = "2026-11"
const val TERMS_TEXT = """Sharing this device's connection:
  - customers' web traffic leaves through your internet connection, and uses your data allowance;
  - you are paid per GB that was carried; the rate is shown when the device registers;
  - your local network, mail ports and private addresses are never reachable through it;
  - you can stop at any time; open connections end at once.
"""
private const val API_TIMEOUT_S = 15L
private const val ANSWER_MAX_BYTES = 1024L * 1024
private const val STATE_MAX_BYTES = 64L * 1024
private const val BACKOFF_MAX_S = 60.0
private const val ALLOWED_CHECK_MS = 20_000L
private const val LOGGED_MAX_CHARS = 200
private const val STOP_WITHIN_S = 3L
private val HURRY_S = 0.05..0.5

/** Waits in seconds; `dead` and one `tick` make the 45 s within which a dead path is noticed. Only a lab shortens them. */
data class Times(
    val redialMin: Double = 5.0,
    val redialMax: Double = 7.0,
    val heartbeat: Double = 30.0,
    val dead: Double = 40.0,
    val streamsDead: Double = 15.0,
    val tick: Double = 5.0,
    val wake: Double = 10.0,
    val idle: Double = 960.0,
    val redirect: Double = 60.0,
    val resume: Double = 20.0,
    val dial: Double = 8.0,
)

/** The owner's recorded agreement; the time is in unix milliseconds. No device runs without one. */
data class Consent(val termsVersion: String, val acceptedAt: Long, val method: String)

/** All that a device is told. `allowed` is asked while it runs: charger, unmetered network, and what else the platform knows. */
data class Settings(
    val api: String,
    val apiKey: String,
    val name: String,
    val consent: Consent,
    val state: Path?,
    val connections: Int = 4,
    val country: String = "US",
    val wallet: String = "",
    val relay: String = "",
    val bind: String? = null,
    val limitMbit: Double? = null,
    val schedule: Schedule? = null,
    val allowed: () -> Boolean = { true },
    val type: String = "android",
    val model: String = "",
    val osVersion: String = System.getProperty("os.name").orEmpty(),
    val protocol: String = PROTOCOL_V2,
    val policy: EgressPolicy = EgressPolicy(),
    val own: OwnNetworks = OwnNetworks(),
    val times: Times = Times(),
    val verbose: Boolean = false,
) {
    val sdkVersion get() = "$type-$VERSION"

    init {
        require(consent.termsVersion == TERMS_VERSION) { "the owner has not agreed to version $TERMS_VERSION of the terms" }
        require(connections in 1..8) { "connections must be 1 to 8" }
    }
}

const val WITHDRAWN_TEXT =
    "consent was withdrawn: nothing is shared until the owner agrees again, on a terminal or by the account's API key"

class Identity(val deviceId: String, val token: String, val refreshToken: String, val relay: String, val relays: List<String>)

/** What a device keeps between starts; the file is the same for every SDK. `withdrawn` names it after its consent was withdrawn;
 *  `attempt` is there while a registration is not answered. */
class State(
    val name: String? = null,
    val deviceId: String? = null,
    val refreshToken: String? = null,
    val consent: Consent? = null,
    val withdrawn: String? = null,
    val attempt: String? = null,
) {
    companion object {
        private val NONE = State()

        fun read(path: Path): State = try {
            if (Files.size(path) > STATE_MAX_BYTES) NONE else Gson().fromJson(Files.readString(path), State::class.java) ?: NONE
        } catch (_: IOException) {
            NONE
        } catch (_: JsonParseException) {
            NONE
        }

        /** Whole or not at all, readable by the owner alone. */
        fun write(path: Path, state: State) {
            val folder = path.toAbsolutePath().parent
            Files.createDirectories(folder)
            val own = PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-------"))
            val part = Files.createTempFile(folder, path.fileName.toString(), ".part", own)
            Files.writeString(part, Gson().toJson(state))
            try {
                Files.move(part, path, ATOMIC_MOVE)
            } catch (_: AtomicMoveNotSupportedException) {
                Files.move(part, path, REPLACE_EXISTING)
            }
        }
    }
}

/** What others wrote, fit for a log: one line, bounded. */
fun printable(text: String): String =
    text.take(LOGGED_MAX_CHARS).map { if (it.isISOControl() || !it.isDefined() || it.isSurrogate()) '?' else it }.joinToString("")

class Log(verbose: Boolean, val say: (String) -> Unit) {
    val verbose: (String) -> Unit = if (verbose) say else { _ -> }
}

/** The API answered with an error. */
class Refused(val status: Int, code: String, message: String) : Exception("$status: $message") {
    val passes = status >= 500 || status == 429 || code == "IDEMPOTENCY_IN_PROGRESS"

    /** The owner took the agreement back: no SDK agrees in an owner's place. */
    val withdrawn = code == "CONSENT_WITHDRAWN"
}

/**
 * One device: an identity, several relay sockets, redials, redirects, and a stop that works. `ended` is told once, with the
 * API's refusal or a fault when it was not the owner who stopped it.
 */
class Device(
    val settings: Settings,
    say: (String) -> Unit,
    client: OkHttpClient = OkHttpClient(),
    private val ended: (Throwable?) -> Unit = {},
) {
    val log = Log(settings.verbose, say)
    val loop = Loop { fault -> finished(fault) }
    val table = Table(settings, loop, log)
    private val http = client.newBuilder().followRedirects(false).retryOnConnectionFailure(false)
        .callTimeout(0, TimeUnit.SECONDS).proxy(Proxy.NO_PROXY).build()
    private val done = CountDownLatch(1)
    private val lines = ArrayList<Line>()
    private var identity: Identity? = null
    private var attempt: String? = null
    private var obtaining: MutableList<(Identity?) -> Unit>? = null
    private var relay: String? = null
    private var redirectedNanos: Long? = null
    private var serving = false
    private var stopping = false

    fun start() {
        loop.start()
        loop.execute { look() }
    }

    /** End every tunnel and socket at once. Blocks until that is done, at most a few seconds. */
    fun stop() {
        loop.execute {
            stopping = true
            pause()
            if (lines.all { it.idle }) finished(null)
        }
        done.await(STOP_WITHIN_S, TimeUnit.SECONDS)
        loop.stop()
        table.close()
        http.dispatcher.executorService.shutdown()
        http.connectionPool.evictAll()
    }

    private fun finished(fault: Throwable?) {
        if (done.count == 0L) return
        done.countDown()
        ended(fault)
    }

    /** What the platform learned (network, charger) is looked at now rather than in a while. */
    fun changed() = loop.execute { serveOrPause() }

    private fun look() {
        if (stopping) return
        serveOrPause()
        loop.after(ALLOWED_CHECK_MS) { look() }
    }

    private fun serveOrPause() {
        if (stopping) return
        val allowed = settings.allowed() && settings.schedule?.openAt(LocalTime.now()) != false
        if (allowed && !serving) {
            serving = true
            while (lines.size < settings.connections) lines.add(Line())
            lines.forEach { it.begin() }
        } else if (!allowed && (serving || lines.isEmpty())) {
            log.say("[PAUSED] outside the owner's hours, or not as the owner allows")
            pause()
        }
    }

    private fun pause() {
        serving = false
        table.stop()
        lines.forEach { it.halt() }
    }

    /**
     * One of the parallel sockets, from dial to dial. It goes to another relay at once, but in a row to no more than there are:
     * who is sent round waits like others.
     */
    private inner class Line {
        private var socket: RelaySocket? = null
        private var who: Identity? = null
        private var hurried = false
        private var failures = 0
        private var hops = 0
        private var beganNanos = 0L
        private var epoch = 0
        val idle get() = socket == null

        fun begin() {
            if (socket != null) return // it is still ending; `gone` begins anew
            val mine = ++epoch
            withIdentity(null) { found -> if (mine == epoch && found != null) dial(found) }
        }

        fun halt() {
            epoch++
            socket?.stop()
        }

        private fun dial(found: Identity) {
            if (!serving) return
            who = found
            val url = relay ?: found.relay
            val one = RelaySocket(this@Device, found, url)
            socket = one
            beganNanos = System.nanoTime()
            one.start(http) { code -> gone(one, found, url, code) }
        }

        private fun gone(one: RelaySocket, found: Identity, url: String, code: Int) {
            socket = null
            if (stopping) {
                if (lines.all { it.idle }) finished(null)
                return
            }
            if (!serving) return
            val mine = ++epoch
            failures = if (one.connected) 0 else failures + 1
            if (!one.stands) {
                log.say("relay not reached")
                moveOn(found, url)
            }
            if ((System.nanoTime() - beganNanos) / 1e9 > settings.times.redialMax) hops = 0
            hops++
            if ((relay ?: found.relay) != url && maxOf(hops, failures) <= found.relays.size) {
                dial(found)
                return
            }
            hops = 0
            val invalid = code == IDENTITY_INVALID || code == IDENTITY_REVOKED
            withIdentity(if (invalid) found else null) { fresh ->
                if (mine == epoch && fresh != null) {
                    hurried = table.byToken.isNotEmpty() && !hurried
                    loop.after(redialMs(hurried, failures)) { if (mine == epoch) dial(fresh) }
                }
            }
        }
    }

    /** Hurried while tunnels wait to be resumed, but never twice in a row; full jitter; longer while no relay answers. */
    private fun redialMs(hurried: Boolean, failures: Int): Long {
        val low = if (hurried) HURRY_S.start else settings.times.redialMin
        var high = if (hurried) HURRY_S.endInclusive else settings.times.redialMax
        if (failures > 1) high = maxOf(high, minOf(BACKOFF_MAX_S, settings.times.redialMax * (1 shl minOf(failures - 1, 10))))
        return ((low + Random.nextDouble() * maxOf(0.0, high - low)) * 1000).toLong()
    }

    /** Only elsewhere, to relays that the API named, once a while; other sockets follow the first one. A pinned relay is kept. */
    fun mayFollow(who: Identity, from: String, target: String): Boolean {
        if (target.isEmpty() || target == from || settings.relay.isNotEmpty()) return false
        if (target == relay) return true
        val now = System.nanoTime()
        val recent = redirectedNanos?.let { (now - it) / 1e9 < settings.times.redirect } ?: false
        if (recent || target !in who.relays) return false
        redirectedNanos = now
        relay = target
        log.say("moving to relay ${printable(target)}")
        return true
    }

    /** A relay goes away or is not reached: every socket tries the next one that the API named. */
    fun moveOn(who: Identity, url: String) {
        if (settings.relay.isNotEmpty() || (relay ?: who.relay) != url || who.relays.size < 2) return
        relay = who.relays[(who.relays.indexOf(url) + 1) % who.relays.size]
        redirectedNanos = System.nanoTime()
        log.say("moving on to relay ${printable(relay.orEmpty())}")
    }

    // identity

    /** Another identity than the stale one, fetched once for everybody, however long the API takes. */
    private fun withIdentity(stale: Identity?, told: (Identity?) -> Unit) {
        val current = identity
        if (current != null && current.token != stale?.token) {
            told(current)
            return
        }
        val waiting = obtaining
        if (waiting != null) {
            waiting.add(told)
            return
        }
        obtaining = mutableListOf(told)
        obtain(stale, 1.0)
    }

    private fun obtain(stale: Identity?, waitS: Double) {
        val kept = settings.state?.takeIf { stale == null }?.let(State::read)
            ?.takeIf { it.name == null || it.name == settings.name }
        val deviceId = stale?.deviceId ?: kept?.deviceId
        val refreshToken = stale?.refreshToken ?: kept?.refreshToken
        if (deviceId.isNullOrEmpty() || refreshToken.isNullOrEmpty()) {
            agreeAgain(kept?.withdrawn, stale, waitS)
            return
        }
        val url = "${settings.api}/v1/peer/agents".toHttpUrl().newBuilder().addPathSegment(deviceId).addPathSegment("refresh")
        call(url.build().toString(), mapOf("refreshToken" to refreshToken)) { answer ->
            answer.onSuccess { keep(deviceId, refreshToken, it) }.onFailure {
                val over = it is Refused && !it.passes && !it.withdrawn
                if (over) register(deviceId, stale, waitS) else again(deviceId, stale, waitS, it)
            }
        }
    }

    /** Tell the API when a person agreed after a withdrawal: what is sent along with a registration does not count. */
    private fun agreeAgain(deviceId: String?, stale: Identity?, waitS: Double) {
        if (deviceId.isNullOrEmpty() || settings.apiKey.isEmpty() || settings.consent.method == "flag") {
            register(deviceId, stale, waitS)
            return
        }
        val url = "${settings.api}/v1/peer/my-devices".toHttpUrl().newBuilder().addPathSegment(deviceId).addPathSegment("consent")
        call(url.build().toString(), settings.consent, "X-API-Key" to settings.apiKey, "deviceId") { answer ->
            answer.onSuccess { register(deviceId, stale, waitS) }.onFailure { again(deviceId, stale, waitS, it) }
        }
    }

    private fun register(deviceId: String?, stale: Identity?, waitS: Double) {
        val body = mutableMapOf<String, Any>(
            "name" to settings.name, "type" to settings.type, "connectionMethod" to "relay",
            "sdkVersion" to settings.sdkVersion, "consent" to settings.consent,
            "ownerTokens" to true,
        )
        if (settings.apiKey.isNotEmpty()) body["apiKey"] = settings.apiKey
        if (settings.wallet.isNotEmpty()) body["walletAddress"] = settings.wallet
        val once = "Idempotency-Key" to attemptKey(body)
        call("${settings.api}/v1/peer/agents/register", body, once, "token") { answer ->
            answer.onSuccess { keep(it.get("deviceId").asString, "", it) }.onFailure { again(deviceId, stale, waitS, it) }
        }
    }

    /**
     * What names a registration until it is answered, also over a restart: whoever lost the answer gets it again, and a device
     * without an API key is known by it as the one that began.
     */
    private fun attemptKey(body: Map<String, Any>): String {
        val kept = settings.state?.let(State::read)?.takeIf { it.name == null || it.name == settings.name } ?: State()
        val mine = attempt ?: kept.attempt ?: ByteArray(16).also(SecureRandom()::nextBytes).hex()
        attempt = mine
        if (kept.attempt != mine) settings.state?.let {
            State.write(it, State(settings.name, kept.deviceId, kept.refreshToken, settings.consent, kept.withdrawn, mine))
        }
        return MessageDigest.getInstance("SHA-256").digest("$mine\n${Gson().toJson(body)}".toByteArray()).hex()
    }

    private fun forgetAttempt() {
        attempt = null
        val path = settings.state ?: return
        val kept = State.read(path)
        if (kept.attempt == null || kept.name != settings.name) return
        State.write(path, State(kept.name, kept.deviceId, kept.refreshToken, kept.consent, kept.withdrawn))
    }

    private fun again(deviceId: String?, stale: Identity?, waitS: Double, fault: Throwable) {
        if (stopping) return
        if (fault is Refused && !fault.passes) forgetAttempt() // another registration is another attempt
        if (fault is Refused && fault.withdrawn) { // the next start asks again
            settings.state?.let { State.write(it, State(name = settings.name, withdrawn = deviceId)) }
        }
        if (fault is Refused && !fault.passes) {
            finished(fault)
            return
        }
        log.say("API: ${if (fault is Refused) fault.message else "not reached"}")
        loop.after((2 * waitS * Random.nextDouble() * 1000).toLong()) { // full jitter
            if (!stopping) obtain(stale, minOf(2 * waitS, BACKOFF_MAX_S))
        }
    }

    private fun keep(deviceId: String, before: String, answer: JsonObject) {
        attempt = null
        val fresh = answer.get("refreshToken")?.asString.orEmpty().ifEmpty { before }
        val found = Identity(
            deviceId, answer.get("token").asString, fresh, settings.relay.ifEmpty { answer.get("relay").asString },
            answer.getAsJsonArray("relays")?.map { it.asString }.orEmpty(),
        )
        settings.state?.let { State.write(it, State(settings.name, deviceId, fresh, settings.consent)) }
        identity = found
        val relay = printable(found.relay)
        val rate = printable(answer.get("earningsPerGB")?.takeIf { it.isJsonPrimitive }?.asString ?: "?")
        log.say("[REGISTERED] device=${printable(deviceId)} relay=$relay sockets=${settings.connections} usdcPerGB=$rate")
        val waiting = obtaining.orEmpty()
        obtaining = null
        waiting.forEach { it(found) }
    }

    /** One JSON call, with one header more when it is given; the answer must hold what is wanted. */
    private fun call(
        url: String,
        body: Any,
        header: Pair<String, String>? = null,
        wanted: String = "token",
        told: (Result<JsonObject>) -> Unit,
    ) {
        val asked = Request.Builder().url(url).post(json(body))
        val request = (if (header == null) asked else asked.header(header.first, header.second)).build()
        val once = http.newBuilder().callTimeout(API_TIMEOUT_S, TimeUnit.SECONDS).build()
        once.newCall(request).enqueue(object : Callback {
            override fun onFailure(call: Call, e: IOException) = loop.execute { told(Result.failure(e)) }

            override fun onResponse(call: Call, response: Response) {
                val result = runCatching { response.use { parsed(it, wanted) } }
                loop.execute { told(result) }
            }
        })
    }
}

private fun ByteArray.hex() = joinToString("") { "%02x".format(it) }

private fun json(body: Any) = Gson().toJson(body).toRequestBody("application/json".toMediaType())

private fun parsed(response: Response, wanted: String): JsonObject {
    val source = response.body?.source() ?: throw IOException("no body")
    source.request(ANSWER_MAX_BYTES)
    val raw = source.buffer.readUtf8(minOf(source.buffer.size, ANSWER_MAX_BYTES))
    val answer = try {
        JsonParser.parseString(raw).takeIf { it.isJsonObject }?.asJsonObject
    } catch (_: JsonParseException) {
        null
    }
    fun word(name: String) = answer?.get(name)?.takeIf { it.isJsonPrimitive }?.asString.orEmpty()
    if (response.code != 200) throw Refused(response.code, word("code"), printable(word("message")))
    if (answer?.get(wanted) == null) throw IOException("answer not understood")
    return answer
}

/** Take the agreement back, by the owner's key or by the device's own token. Blocks. Throws Refused and IOException. */
fun withdraw(settings: Settings, client: OkHttpClient) {
    val path = settings.state ?: return
    val kept = State.read(path)
    val id = kept.deviceId ?: return
    val http = client.newBuilder().followRedirects(false).proxy(Proxy.NO_PROXY).callTimeout(API_TIMEOUT_S, TimeUnit.SECONDS).build()
    fun url(whose: String, what: String) = "${settings.api}/v1/peer/$whose".toHttpUrl().newBuilder()
        .addPathSegment(id).addPathSegment(what).build()
    fun asked(request: Request, wanted: String) = http.newCall(request).execute().use { parsed(it, wanted) }
    val order = if (settings.apiKey.isNotEmpty()) {
        Request.Builder().url(url("my-devices", "consent")).header("X-API-Key", settings.apiKey)
    } else {
        val asking = mapOf("refreshToken" to kept.refreshToken, "purpose" to "owner")
        val renewal = Request.Builder().url(url("agents", "refresh")).post(json(asking))
        val answer = asked(renewal.build(), "token")
        answer.get("refreshToken")?.let { // the one that was shown is spent, whatever becomes of the order
            State.write(path, State(kept.name, id, it.asString, kept.consent))
        }
        Request.Builder().url(url("agents", "consent")).header("Authorization", "Bearer ${answer.get("token").asString}")
    }
    asked(order.delete(json(emptyMap<String, String>())).build(), "deviceId")
    State.write(path, State(name = kept.name, withdrawn = id))
}
