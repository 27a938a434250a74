package psx.peer

import com.google.gson.JsonObject
import com.google.gson.JsonParser
import java.net.InetAddress
import java.nio.file.Files
import java.nio.file.Path
import java.time.LocalTime
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.io.TempDir

/** The JSON vectors of docs/protocol. */
class VectorsTest {
    private fun load(name: String): JsonObject =
        JsonParser.parseString(Files.readString(Path.of("../../../docs/protocol", name))).asJsonObject

    private fun JsonObject.rows(name: String) = getAsJsonArray(name).map { it.asJsonObject }

    private fun JsonObject.string(name: String) = get(name)?.asString.orEmpty()

    private fun unhex(text: String) = text.chunked(2).map { it.toInt(16).toByte() }.toByteArray()

    private class Recorder : Sink {
        var got = ByteArray(0)

        override fun deliver(data: ByteArray) {
            got += data
        }

        override fun ended() = Unit

        override fun pauseSource() = Unit

        override fun resumeSource() = Unit
    }

    private fun perform(stream: Stream, outbox: Outbox, given: JsonObject) = when (given.string("do")) {
        "attach" -> stream.attach(outbox, given.get("tunnel").asInt)
        "detach" -> stream.detach()
        "write" -> stream.write(unhex(given.string("hex")))
        "eof" -> stream.writeEof()
        "opened" -> stream.onOpened(given.get("limit").asLong)
        "data" -> stream.onData(unhex(given.string("hex")))
        "peer_eof" -> stream.onEof()
        "window" -> stream.onWindow(given.get("received").asLong, given.get("limit").asLong)
        "blocked" -> stream.onBlocked(given.get("limit").asLong)
        "resume" -> stream.resume(given.get("received").asLong, given.get("limit").asLong)
        "stall" -> stream.stall()
        "drained" -> stream.drained()
        else -> throw AssertionError("no such step: $given")
    }

    @TestFactory
    fun anEndDoesWhatItsScriptSays(): List<DynamicTest> = load("binary-v2-stream.json").rows("scripts").map { script ->
        dynamicTest(script.string("name")) {
            val sent = ArrayList<String>()
            val sink = Recorder()
            val outbox = Outbox { sent.add(hex(it as ByteArray)) }
            val stream = Stream(sink, "", WindowBudget(1 shl 20), script.get("window").asLong)
            for (given in script.rows("steps")) {
                sent.clear()
                sink.got = ByteArray(0)
                if (given.get("violates")?.asBoolean == true) {
                    assertThrows(FlowViolation::class.java) { perform(stream, outbox, given) }
                    break
                }
                perform(stream, outbox, given)
                assertEquals(given.getAsJsonArray("sends").map { it.asString }, sent, given.toString())
                assertEquals(given.string("delivers"), hex(sink.got), given.toString())
                assertEquals(given.get("over")?.asBoolean ?: false, stream.over, given.toString())
            }
        }
    }

    @Test
    fun framesReadAndWriteAsTheirVectorsSay() {
        val file = load("binary-v2.json")
        for (row in file.rows("frames")) {
            val raw = unhex(row.string("hex"))
            val found = parseMux(raw)!!
            assertEquals(Mux.valueOf(row.string("type")), found.type)
            assertEquals(row.get("tunnel").asLong.toInt(), found.tunnel)
            when (found.type) {
                Mux.OPEN -> parseOpen(found).let {
                    assertEquals(row.string("token"), it.token)
                    assertEquals(row.string("host"), it.host)
                    assertEquals(row.get("port").asInt, it.port)
                    assertEquals(row.get("limit").asLong, it.limit)
                }
                Mux.WINDOW, Mux.RESUMED ->
                    assertArrayEquals(raw, frame(found.type, found.tunnel, row.get("received").asLong, row.get("limit").asLong))
                Mux.REFUSED, Mux.RESET ->
                    assertArrayEquals(raw, reasonFrame(found.type, found.tunnel, row.get("reason").asInt, row.string("detail")))
                else -> Unit
            }
        }
        for (row in file.rows("malformed")) {
            assertThrows(Malformed::class.java, {
                parseMux(unhex(row.string("hex")))!!.let { if (it.type == Mux.OPEN) parseOpen(it) }
            }, row.string("name"))
        }
        for (row in file.rows("ignored")) assertNull(parseMux(unhex(row.string("hex"))))
    }

    @Test
    fun framesOfV1() {
        val file = load("binary-v1.json")
        for (row in file.rows("frames")) {
            val found = parseBinary(unhex(row.string("hex")))
            assertEquals(row.string("type") == "close", found.close)
            assertEquals(row.string("sessionId"), found.id)
            assertEquals(row.string("payloadHex"), hex(found.payload))
        }
        for (row in file.rows("malformed")) {
            assertThrows(Malformed::class.java, { parseBinary(unhex(row.string("hex"))) }, row.string("name"))
        }
        for (text in file.getAsJsonArray("malformedTexts")) {
            assertThrows(Malformed::class.java, { parseText(text.asString) }, text.asString)
        }
        for (row in file.rows("texts")) parseText(row.string("json"))
    }

    @Test
    fun verdictsOnAddresses() {
        val policy = EgressPolicy()
        for (row in load("egress.json").rows("addresses")) {
            val found = policy.verdict(InetAddress.getByName(row.string("address")), row.get("port").asInt) ?: "allowed"
            assertEquals(row.string("verdict"), found, row.toString())
        }
        for (row in load("egress.json").rows("own")) {
            val (address, prefix) = row.string("of").split("/").let { it[0] to it.getOrNull(1)?.toInt() }
            val onLink = if (prefix == null) emptyList() else listOf(InetAddress.getByName(address.substringBefore('%')) to prefix)
            val own = OwnNetworks { onLink }
            if (prefix == null) own.told(address)
            val found = policy.verdict(InetAddress.getByName(row.string("address")), 443, own.networks()) ?: "allowed"
            assertEquals(row.string("verdict"), found, row.toString())
        }
    }

    @Test
    fun waitsAndChargersAreThoseOfTheVectors(@TempDir folder: Path) {
        val file = load("device.json")
        val waits = file.getAsJsonObject("waits").entrySet()
        assertEquals(Times(), times(waits.joinToString(",") { "${it.key}=${it.value}" }))
        assertEquals(Times::class.java.declaredFields.count { it.type == Double::class.java }, waits.size)
        for ((number, row) in file.rows("chargers").withIndex()) {
            val here = Files.createDirectory(folder.resolve("$number"))
            for ((path, text) in row.getAsJsonObject("supplies").entrySet()) {
                val at = here.resolve(path)
                Files.createDirectories(at.parent)
                Files.writeString(at, "${text.asString}\n")
            }
            val charging = row.get("charging").takeIf { !it.isJsonNull }?.asBoolean
            assertEquals(charging, onCharger(here.toFile()), row.string("name"))
        }
    }

    @Test
    fun hoursOfTheDay() {
        val night = Schedule.parse("22:00-06:30")!!
        assertEquals(listOf(true, true, false, false), listOf(23 to 0, 6 to 29, 6 to 30, 12 to 0).map { (h, m) -> night.openAt(LocalTime.of(h, m)) })
        assertTrue(Schedule.parse("00:00-00:00")!!.openAt(LocalTime.of(3, 3)))
        for (text in listOf("24:00-01:00", "1:00-2:00", "08:00", "08:00-17:60", "x")) assertNull(Schedule.parse(text))
    }

    @Test
    fun noDeviceRunsWithoutItsOwnersAgreement() {
        assertThrows(IllegalArgumentException::class.java) {
            Settings("https://api.example", "k", "n", Consent("2001-01", 0, "dialog"), null)
        }
    }

    @Test
    fun anAllowance() {
        var now = 0L
        val allowance = Allowance(8.0) { now } // 1 MB/s, a quarter of which may burst
        assertEquals(0, allowance.spend(250_000))
        assertEquals(500, allowance.spend(500_000))
        now = 10_000_000_000
        assertEquals(0, allowance.spend(250_000))
    }
}
