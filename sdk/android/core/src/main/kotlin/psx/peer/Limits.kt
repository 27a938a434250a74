package psx.peer

import java.time.LocalTime

private const val BURST_S = 0.25

/** A token bucket over both directions of all tunnels; without a rate it never asks to wait. */
class Allowance(megabits: Double?, private val nanos: () -> Long = System::nanoTime) {
    private val rate = megabits?.times(1e6 / 8)
    private var left = (rate ?: 0.0) * BURST_S
    private var at = nanos()

    /** Take what was just carried; answers for how many milliseconds nothing more should be. */
    fun spend(size: Int): Long {
        val rate = rate ?: return 0
        val now = nanos()
        left = minOf(rate * BURST_S, left + (now - at) / 1e9 * rate) - size
        at = now
        return maxOf(0.0, -left / rate * 1000).toLong()
    }
}

/** Hours of the day in the device's own time, over midnight when the end is before the start. */
class Schedule private constructor(private val from: Int, private val to: Int) {
    fun openAt(time: LocalTime): Boolean {
        val minute = time.hour * 60 + time.minute
        return if (from < to) minute in from until to else minute >= from || minute < to
    }

    companion object {
        private val SPAN = Regex("([01]\\d|2[0-3]):([0-5]\\d)-([01]\\d|2[0-3]):([0-5]\\d)")

        /** Null for what is no HH:MM-HH:MM. */
        fun parse(text: String): Schedule? {
            val (a, b, c, d) = SPAN.matchEntire(text)?.destructured ?: return null
            return Schedule(a.toInt() * 60 + b.toInt(), c.toInt() * 60 + d.toInt())
        }
    }
}

/** Holds that add up: what is held for several reasons is let go when the last one ends. */
class Holds(private val hold: () -> Unit, private val release: () -> Unit) {
    private val reasons = HashSet<Any>()
    val any get() = reasons.isNotEmpty()

    fun add(reason: Any) {
        reasons.add(reason)
        hold()
    }

    /** Hold for a while; one timer, however often it is asked for. */
    fun addFor(millis: Long, loop: Loop) {
        if (millis <= 0 || ALLOWANCE in reasons) return
        add(ALLOWANCE)
        loop.after(millis) { drop(ALLOWANCE) }
    }

    fun drop(reason: Any) {
        if (reasons.remove(reason) && reasons.isEmpty()) release()
    }

    private companion object {
        const val ALLOWANCE = "allowance"
    }
}
