package psx.peer

import com.google.gson.GsonBuilder
import java.io.File
import java.io.IOException
import java.net.InetAddress
import java.nio.file.FileAlreadyExistsException
import java.nio.file.Files
import java.nio.file.Path
import java.nio.file.attribute.PosixFilePermissions
import java.security.KeyStore
import java.security.SecureRandom
import java.security.cert.CertificateFactory
import java.time.Instant
import java.util.concurrent.CountDownLatch
import java.util.concurrent.atomic.AtomicReference
import javax.net.ssl.SSLContext
import javax.net.ssl.TrustManagerFactory
import javax.net.ssl.X509TrustManager
import kotlin.system.exitProcess
import okhttp3.OkHttpClient
import sun.misc.Signal

// The core as a command: what the conformance tests run, and a peer for any JVM. The Android app does not load this file.

private val FLAGS = listOf(
    listOf("api", "PSX_API", "", "API base URL"),
    listOf("key", "API_KEY", "", "API key; others can read a command line, so rather use the variable or -key-file"),
    listOf("key-file", "", "", "file that holds the API key"),
    listOf("name", "AGENT_NAME", "", "stable name of this device"),
    listOf("country", "COUNTRY", "US", "country; the API decides by the address"),
    listOf("connections", "WS_CONNECTIONS", "4", "relay sockets, 1-8"),
    listOf("wallet", "WALLET", "", "payout wallet"),
    listOf("state", "PEER_STATE_FILE", "${System.getProperty("user.home")}/.psx-peer-state.json", "identity file"),
    listOf("relay", "RELAY_URL", "", "pin a relay; else the API chooses"),
    listOf("bind", "PEER_BIND", "", "local address of all connections"),
    listOf("ca-file", "PSX_CA_FILE", "", "trust these certificates instead of the system's"),
    listOf("limit-mbit", "PSX_LIMIT_MBIT", "", "at most so many Mbit/s, both directions together"),
    listOf("schedule", "PSX_SCHEDULE", "", "share only at these hours, HH:MM-HH:MM, local time"),
    listOf("accept-terms", "PSX_ACCEPT_TERMS", "", "agree to version $TERMS_VERSION of the terms"),
)
private val SWITCHES = listOf(
    listOf("only-charging", "PSX_ONLY_CHARGING", "share only on mains power"),
    listOf("random-name", "", "be a new device at every start"),
    listOf("withdraw", "", "take the agreement back: what runs ends within seconds"),
    listOf("verbose", "VERBOSE", "log tunnels"),
    listOf("dry-run", "", "show what would be done, and do nothing"),
    listOf("help", "", "show this"),
)

/** A setting that is missing or wrong, or an owner who did not agree: one line, exit status 2. */
private class Wrong(message: String) : Exception(message)

private fun environment(name: String): String = if (name.isEmpty()) "" else System.getenv(name).orEmpty()

private fun read(arguments: Array<String>): Map<String, String> {
    val given = HashMap<String, String>()
    for ((name, variable, otherwise) in FLAGS) given[name] = environment(variable).ifEmpty { otherwise }
    for ((name, variable) in SWITCHES) given[name] = (environment(variable) in setOf("true", "1", "yes")).toString()
    var at = 0
    while (at < arguments.size) {
        val (name, inline) = arguments[at].split("=", limit = 2) + listOf<String?>(null)
        val flag = name!!.removePrefix("-").removePrefix("-")
        when {
            !name.startsWith("-") || flag !in given -> throw Wrong("unknown argument ${printable(name)}")
            SWITCHES.any { it[0] == flag } -> given[flag] = inline ?: "true"
            inline != null -> given[flag] = inline
            at + 1 == arguments.size -> throw Wrong("-$flag needs a value")
            else -> given[flag] = arguments[++at]
        }
        at++
    }
    return given
}

private fun help(): String {
    fun line(name: String, variable: String, what: String) =
        "  -$name\n        $what${if (variable.isEmpty()) "" else " [$variable]"}"
    return "psx-peer: share this device's internet connection and earn USDC. Flags, and the variables they read:\n" +
        (FLAGS.map { line(it[0], it[1], it[3]) } + SWITCHES.map { line(it[0], it[1], it[2]) }).joinToString("\n")
}

/** Whether the machine has mains power; null where the platform does not say (Linux does). */
internal fun onCharger(folder: File = File("/sys/class/power_supply")): Boolean? {
    fun words(name: (File) -> Boolean, file: String) = folder.listFiles(name).orEmpty()
        .map { File(it, file) }.filter { it.canRead() }.map { it.readText().trim() }
    val online = words({ true }, "online")
    if (online.isNotEmpty()) return "1" in online
    val batteries = words({ it.name.startsWith("BAT") }, "status")
    return if (batteries.isEmpty()) null else "Discharging" !in batteries
}

private fun obtainConsent(given: String, kept: Consent?): Consent {
    val now = System.currentTimeMillis()
    if (given.isNotEmpty() && given != TERMS_VERSION) throw Wrong("these are not the terms: -accept-terms must be $TERMS_VERSION")
    @Suppress("SENSELESS_COMPARISON") // what was read from a file may lack it
    if (kept?.termsVersion == TERMS_VERSION && kept.method != null) return kept
    if (given.isNotEmpty()) return Consent(TERMS_VERSION, now, "flag")
    System.console() ?: throw Wrong("-accept-terms $TERMS_VERSION is needed: the owner must agree to share this connection")
    print("${TERMS_TEXT}Do you agree? [y/N] ")
    System.out.flush()
    if (readlnOrNull()?.trim()?.lowercase() !in setOf("y", "yes")) throw Wrong("not agreed: nothing was shared")
    return Consent(TERMS_VERSION, now, "terminal")
}

internal fun times(text: String): Times {
    val given = text.split(",").filter { '=' in it }.associate { it.substringBefore('=') to it.substringAfter('=').toDouble() }
    val usual = Times()
    return Times(
        given["redial_min"] ?: usual.redialMin, given["redial_max"] ?: usual.redialMax,
        given["heartbeat"] ?: usual.heartbeat, given["dead"] ?: usual.dead, given["streams_dead"] ?: usual.streamsDead,
        given["tick"] ?: usual.tick, given["wake"] ?: usual.wake, given["idle"] ?: usual.idle,
        given["redirect"] ?: usual.redirect, given["resume"] ?: usual.resume, given["dial"] ?: usual.dial,
    )
}

private fun labAllow(text: String): Set<String> = text.split(",").filter { ':' in it }.map {
    val address = InetAddress.getByName(it.substringBeforeLast(':').removeSurrounding("[", "]"))
    "${address.hostAddress}:${it.substringAfterLast(':')}"
}.toSet()

private fun check(given: Map<String, String>, lab: Boolean) {
    val api = given.getValue("api")
    val count = given.getValue("connections")
    val limit = given.getValue("limit-mbit")
    val hours = given.getValue("schedule")
    when {
        api.isEmpty() -> throw Wrong("-api is missing: the API's base URL")
        !api.startsWith("https://") && !lab -> throw Wrong("-api must begin with https://: the API key would travel in the clear")
        listOf("key", "key-file", "wallet").all { given.getValue(it).isEmpty() } && given["withdraw"] != "true" ->
            throw Wrong("no API key: set API_KEY or -key-file (or give -wallet alone)")
        count.toIntOrNull() !in 1..8 -> throw Wrong("-connections must be 1 to 8")
        limit.isNotEmpty() && limit.toDoubleOrNull()?.let { it > 0 && it < 1e6 } != true ->
            throw Wrong("-limit-mbit must be a number above 0")
        hours.isNotEmpty() && Schedule.parse(hours) == null -> throw Wrong("a schedule is HH:MM-HH:MM")
        given["only-charging"] == "true" && onCharger() == null ->
            throw Wrong("-only-charging: this machine does not say whether it is on mains power")
    }
}

private fun settings(given: Map<String, String>): Settings {
    val lab = environment("PSX_STAGE") == "local"
    check(given, lab)
    val dry = given["dry-run"] == "true" || given["withdraw"] == "true"
    val random = given["random-name"] == "true"
    val path = Path.of(given.getValue("state"))
    val kept = if (random) State() else State.read(path)
    val fresh = "jvm-" + hex(ByteArray(4).also(SecureRandom()::nextBytes))
    val name = if (random) fresh else given.getValue("name").ifEmpty { kept.name ?: fresh }
    val consent = if (dry) Consent(TERMS_VERSION, 0, "none") else obtainConsent(given.getValue("accept-terms"), kept.consent)
    return Settings(
        api = given.getValue("api").trimEnd('/'),
        apiKey = given.getValue("key-file").let { if (it.isEmpty()) given.getValue("key") else File(it).readText().trim() },
        name = name,
        consent = consent,
        state = if (random) null else path,
        connections = given.getValue("connections").toInt(),
        country = given.getValue("country"),
        wallet = given.getValue("wallet"),
        relay = given.getValue("relay"),
        bind = given.getValue("bind").ifEmpty { null },
        limitMbit = given.getValue("limit-mbit").toDoubleOrNull(),
        schedule = Schedule.parse(given.getValue("schedule")),
        allowed = { given["only-charging"] != "true" || onCharger() != false },
        type = "jvm",
        protocol = if (environment("PSX_PROTOCOL") == PROTOCOL_V1) PROTOCOL_V1 else PROTOCOL_V2,
        policy = EgressPolicy(if (lab) labAllow(environment("PSX_EGRESS_LAB_ALLOW")) else emptySet()),
        times = if (lab) times(environment("PSX_LAB_TIMES")) else Times(),
        verbose = given["verbose"] == "true",
    )
}

private fun client(caFile: String): OkHttpClient {
    if (caFile.isEmpty()) return OkHttpClient()
    val store = KeyStore.getInstance(KeyStore.getDefaultType()).apply { load(null) }
    File(caFile).inputStream().use { CertificateFactory.getInstance("X.509").generateCertificates(it) }
        .forEachIndexed { i, certificate -> store.setCertificateEntry("$i", certificate) }
    val factory = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm()).apply { init(store) }
    val trust = factory.trustManagers.filterIsInstance<X509TrustManager>().first()
    val context = SSLContext.getInstance("TLS").apply { init(null, arrayOf(trust), null) }
    return OkHttpClient.Builder().sslSocketFactory(context.socketFactory, trust).build()
}

/** Say that this process uses the state file, so that two instances never share one identity by accident. */
private fun hold(path: Path): Path {
    val lock = path.resolveSibling("${path.fileName}.lock")
    path.toAbsolutePath().parent?.let { Files.createDirectories(it) }
    repeat(2) {
        try {
            val own = PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-------"))
            Files.createFile(lock, own)
            Files.writeString(lock, ProcessHandle.current().pid().toString())
            return lock
        } catch (_: FileAlreadyExistsException) {
            val holder = runCatching { Files.readString(lock).trim().toLong() }.getOrNull()
            val runs = holder != null && holder != ProcessHandle.current().pid() && ProcessHandle.of(holder).isPresent
            if (runs) throw IOException("another instance uses $path: give each one its own name and state file")
            Files.deleteIfExists(lock)
        }
    }
    throw IOException("another instance is starting with $path")
}

private fun dryRun(given: Map<String, String>, s: Settings) {
    val plan = linkedMapOf(
        "name" to s.name, "api" to s.api, "connections" to s.connections, "protocol" to s.protocol,
        "state" to s.state.toString(), "relay" to s.relay, "limitMbit" to s.limitMbit,
        "termsAccepted" to given.getValue("accept-terms"),
    )
    println(TERMS_TEXT + GsonBuilder().setPrettyPrinting().create().toJson(plan))
}

private fun takeBack(s: Settings, caFile: String) {
    val kept = s.state?.let(State::read)
    if (kept?.deviceId == null || kept.refreshToken == null || kept.name != s.name) {
        throw Wrong("${s.state} holds no registered device of this name")
    }
    withdraw(s, client(caFile))
    println("${s.name}: withdrawn, nothing of it is shared any more")
}

private fun serve(s: Settings, caFile: String) {
    val lock = s.state?.let(::hold)
    val over = CountDownLatch(1)
    val why = AtomicReference<Throwable?>()
    val device = Device(s, { System.err.println("${Instant.now()} $it") }, client(caFile)) { fault ->
        why.set(fault)
        over.countDown()
    }
    for (name in listOf("INT", "TERM")) Signal.handle(Signal(name)) { over.countDown() }
    try {
        device.start()
        over.await()
        device.stop()
        why.get()?.let { throw it }
    } finally {
        lock?.let(Files::deleteIfExists)
    }
}

fun main(arguments: Array<String>) {
    val status = try {
        val given = read(arguments)
        if (given["help"] == "true") {
            println(help())
        } else {
            val s = settings(given)
            when {
                given["dry-run"] == "true" -> dryRun(given, s)
                given["withdraw"] == "true" -> takeBack(s, given.getValue("ca-file"))
                else -> serve(s, given.getValue("ca-file"))
            }
        }
        0
    } catch (wrong: Wrong) {
        System.err.println("psx-peer: ${wrong.message}")
        2
    } catch (refusal: Refused) {
        System.err.println("psx-peer: " + if (refusal.withdrawn) WITHDRAWN_TEXT else "the API refused this device: ${refusal.message}")
        if (refusal.withdrawn) 2 else 1
    } catch (fault: IOException) {
        System.err.println("psx-peer: ${fault.message}")
        1
    }
    exitProcess(status)
}
