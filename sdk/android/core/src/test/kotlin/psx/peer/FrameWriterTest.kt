package psx.peer

import java.io.ByteArrayOutputStream
import java.io.DataInputStream
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import kotlin.experimental.xor
import kotlin.random.Random
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

/** Messages as a server reads them (RFC 6455 section 5.2). */
class FrameWriterTest {
    private class Message(val kind: Int, val key: ByteArray, val payload: ByteArray)

    private fun read(from: DataInputStream): Message {
        val kind = from.readUnsignedByte()
        val short = from.readUnsignedByte() - 128
        val size = if (short < 126) short else if (short == 126) from.readUnsignedShort() else from.readLong().toInt()
        assertTrue(short != 126 || size >= 126)
        assertTrue(short != 127 || size >= 65_536)
        val key = ByteArray(4).also(from::readFully)
        val masked = ByteArray(size).also(from::readFully)
        return Message(kind, key, ByteArray(size) { masked[it] xor key[it % 4] })
    }

    @Test
    fun `messages of any size are read as they were written`() {
        val out = ByteArrayOutputStream()
        val writer = FrameWriter(out, 0, {}, {})
        val sizes = listOf(0, 1, 3, 4, 7, 8, 9, 125, 126, 127, 1000, 65_535, 65_536, 65_541, 5, 300_000, 2)
        val said = sizes.map { Random(it).nextBytes(it) }
        said.forEach(writer::write)
        writer.write("\u00e9t\u00e9")
        val from = DataInputStream(out.toByteArray().inputStream())
        val heard = said.map { read(from) }
        for ((wanted, found) in said.zip(heard)) {
            assertEquals(0x82, found.kind)
            assertArrayEquals(wanted, found.payload)
        }
        assertEquals(heard.size, heard.map { it.key.toList() }.toSet().size, "each has a key of its own")
        val text = read(from)
        assertEquals(0x81, text.kind)
        assertEquals("\u00e9t\u00e9", String(text.payload))
        assertEquals(0, from.available())
    }

    @Test
    fun `what waits is told when it is little again, and the end comes last`() {
        val out = ByteArrayOutputStream()
        val low = CountDownLatch(1)
        val ended = CountDownLatch(1)
        val writer = FrameWriter(out, 1000, low::countDown, {})
        repeat(10) { writer.send(ByteArray(500)) }
        writer.end(ended::countDown)
        assertTrue(writer.waitingBytes > 5000)
        writer.start()
        assertTrue(low.await(5, TimeUnit.SECONDS))
        assertTrue(ended.await(5, TimeUnit.SECONDS))
        assertEquals(0, writer.waitingBytes)
        assertEquals(10 * (500 + 8), out.size())
    }
}
