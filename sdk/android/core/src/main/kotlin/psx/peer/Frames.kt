package psx.peer

import com.google.gson.JsonObject
import com.google.gson.JsonParser
import com.google.gson.JsonSyntaxException
import com.google.gson.JsonIOException
import com.google.gson.Strictness
import com.google.gson.stream.JsonReader
import java.io.StringReader
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.nio.charset.CodingErrorAction

// Frames of binary-v1 and binary-v2: bytes in, values out (docs/protocol, shared/wire). Limits are u64 on the wire; one that
// a Long does not hold means no more than the largest that it does.

const val PROTOCOL_V1 = "binary-v1"
const val PROTOCOL_V2 = "binary-v2"
const val DATA_MAX_BYTES = 64 * 1024
const val TEXT_MAX_BYTES = 1024 * 1024
const val TOKEN_BYTES = 16
private const val TEXT_MAX_BRACKETS = 256
private const val HEADER_BYTES = 5
private const val OPEN_BYTES = TOKEN_BYTES + 8 + 2 + 1
private const val HOST_MAX_BYTES = 253
private const val DETAIL_MAX_BYTES = 128
private const val SESSION_ID_MAX_BYTES = 255

/** A frame that is not of the protocol: the socket is closed. */
class Malformed(message: String) : Exception(message)

enum class Mux(val code: Int, val bodyBytes: IntRange) {
    OPEN(0x10, OPEN_BYTES..OPEN_BYTES + HOST_MAX_BYTES),
    OPENED(0x11, 8..8),
    REFUSED(0x12, 1..1 + DETAIL_MAX_BYTES),
    DATA(0x13, 0..DATA_MAX_BYTES),
    WINDOW(0x14, 16..16),
    EOF(0x15, 0..0),
    RESET(0x16, 1..1),
    PING(0x17, 8..8),
    PONG(0x18, 8..8),
    GOAWAY(0x19, 8..8),
    RESUME(0x1a, TOKEN_BYTES + 16..TOKEN_BYTES + 16),
    RESUMED(0x1b, 16..16),
    BLOCKED(0x1c, 8..8),
    CLOSE(0x1d, 0..0);

    companion object {
        private val byCode = entries.associateBy { it.code }

        fun of(code: Byte): Mux? = byCode[code.toInt() and 0xff]
    }
}

enum class Reason(val code: Int) {
    CONNECTION_REFUSED(1),
    DNS_FAILED(2),
    TIMEOUT(3),
    UNREACHABLE(4),
    EGRESS_POLICY(5),
    TARGET_RESET(6),
    PATH_LOST(17),
    FLOW_VIOLATION(18),
    TOO_MANY_TUNNELS(19),
    UNKNOWN_TUNNEL(21),
}

class Frame(val type: Mux, val tunnel: Int, val body: ByteBuffer) {
    fun number(at: Int): Long = body.getLong(body.position() + at).let { if (it < 0) Long.MAX_VALUE else it }

    fun bytes(from: Int = 0): ByteArray = body.duplicate().let {
        it.position(it.position() + from)
        ByteArray(it.remaining()).also(it::get)
    }
}

class OpenRequest(val token: String, val limit: Long, val host: String, val port: Int)

class BinaryV1(val close: Boolean, val id: String, val payload: ByteArray)

class Text(val type: String, private val payload: JsonObject) {
    fun text(name: String): String =
        payload.get(name)?.takeIf { it.isJsonPrimitive && it.asJsonPrimitive.isString }?.asString ?: ""

    fun integer(name: String): Int {
        val value = payload.get(name)?.takeIf { it.isJsonPrimitive && it.asJsonPrimitive.isNumber } ?: return 0
        val number = value.asDouble
        return if (number == Math.floor(number) && Math.abs(number) < Int.MAX_VALUE) number.toInt() else 0
    }
}

/** A frame; null for a type that nobody knows. */
fun parseMux(data: ByteArray): Frame? {
    if (data.size < HEADER_BYTES) throw Malformed("frame too short")
    val type = Mux.of(data[0]) ?: return null
    if (data.size - HEADER_BYTES !in type.bodyBytes) throw Malformed("frame of a wrong length")
    val body = ByteBuffer.wrap(data, HEADER_BYTES, data.size - HEADER_BYTES)
    return Frame(type, ByteBuffer.wrap(data).getInt(1), body)
}

fun parseOpen(frame: Frame): OpenRequest {
    val body = frame.bytes()
    val size = body[OPEN_BYTES - 1].toInt() and 0xff
    val port = ByteBuffer.wrap(body).getShort(TOKEN_BYTES + 8).toInt() and 0xffff
    val host = body.copyOfRange(OPEN_BYTES, body.size)
    if (host.size != size || size == 0 || size > HOST_MAX_BYTES || port == 0) throw Malformed("OPEN names no target")
    return OpenRequest(hex(body.copyOf(TOKEN_BYTES)), frame.number(TOKEN_BYTES), utf8(host), port)
}

fun hex(raw: ByteArray): String = raw.joinToString("") { "%02x".format(it) }

fun frame(type: Mux, tunnel: Int, vararg numbers: Long): ByteArray =
    ByteBuffer.allocate(HEADER_BYTES + numbers.size * 8).put(type.code.toByte()).putInt(tunnel)
        .also { room -> numbers.forEach(room::putLong) }.array()

fun dataFrame(type: Mux, tunnel: Int, data: ByteArray, from: Int = 0, size: Int = data.size): ByteArray =
    ByteBuffer.allocate(HEADER_BYTES + size).put(type.code.toByte()).putInt(tunnel).put(data, from, size).array()

fun reasonFrame(type: Mux, tunnel: Int, reason: Int, detail: String = ""): ByteArray {
    val raw = detail.toByteArray()
    var size = minOf(raw.size, DETAIL_MAX_BYTES)
    while (size < raw.size && size > 0 && raw[size].toInt() and 0xc0 == 0x80) size-- // between letters
    return dataFrame(type, tunnel, byteArrayOf(reason.toByte()) + raw.copyOf(size))
}

fun parseBinary(data: ByteArray): BinaryV1 {
    val end = 2 + if (data.size < 2) 0 else data[1].toInt() and 0xff
    if (data.size < 3 || end == 2 || data.size < end || data[0].toInt() !in setOf(1, 3)) {
        throw Malformed("not a frame of binary-v1")
    }
    return BinaryV1(data[0].toInt() == 3, utf8(data.copyOfRange(2, end)), data.copyOfRange(end, data.size))
}

/** What stands before the bytes of a session of v1. */
fun binaryPrefix(id: String): ByteArray {
    val raw = id.toByteArray()
    if (raw.isEmpty() || raw.size > SESSION_ID_MAX_BYTES) throw Malformed("session id too long")
    return byteArrayOf(1, raw.size.toByte()) + raw
}

/** A text frame; a payload that is no object counts as empty. */
fun parseText(raw: String): Text {
    if (raw.length > TEXT_MAX_BYTES) throw Malformed("text frame too long")
    if (raw.count { it == '{' || it == '[' } > TEXT_MAX_BRACKETS) throw Malformed("text frame too deep")
    val message = try {
        val reader = JsonReader(StringReader(raw)).apply { strictness = Strictness.STRICT }
        JsonParser.parseReader(reader).takeIf { it.isJsonObject }?.asJsonObject
    } catch (_: JsonSyntaxException) {
        null
    } catch (_: JsonIOException) {
        null
    }
    val type = message?.get("type")?.takeIf { it.isJsonPrimitive && it.asJsonPrimitive.isString }?.asString
        ?: throw Malformed("not a text frame")
    return Text(type, message.get("payload")?.takeIf { it.isJsonObject }?.asJsonObject ?: JsonObject())
}

fun textFrame(type: String, payload: Map<String, Any>): String {
    val inner = JsonObject()
    for ((name, value) in payload) {
        when (value) {
            is Boolean -> inner.addProperty(name, value)
            is Number -> inner.addProperty(name, value)
            else -> inner.addProperty(name, value.toString())
        }
    }
    return JsonObject().apply {
        addProperty("type", type)
        add("payload", inner)
    }.toString()
}

private fun utf8(raw: ByteArray): String = try {
    Charsets.UTF_8.newDecoder().onMalformedInput(CodingErrorAction.REPORT).decode(ByteBuffer.wrap(raw)).toString()
} catch (_: CharacterCodingException) {
    throw Malformed("not UTF-8")
}
