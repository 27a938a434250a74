package psx.peer.android

import android.content.Context
import android.os.Build
import java.nio.file.Path
import psx.peer.Consent
import psx.peer.Schedule
import psx.peer.Settings
import psx.peer.TERMS_VERSION

private const val STORE = "psx-peer"

/** What the app that embeds the library sets, once, in the app's private storage. `name` is the device's stable name. */
data class PeerPlan(
    val api: String,
    val apiKey: String,
    val name: String,
    val connections: Int = 4,
    val limitMbit: Double? = null,
    val hours: String = "",
    val onlyUnmetered: Boolean = true,
    val onlyCharging: Boolean = false,
) {
    init {
        require(api.startsWith("https://")) { "the API key would travel in the clear" }
        require(name.isNotEmpty()) { "a device needs a stable name" }
    }

    fun save(context: Context) = context.getSharedPreferences(STORE, Context.MODE_PRIVATE).edit()
        .putString("api", api).putString("apiKey", apiKey).putString("name", name).putInt("connections", connections)
        .putString("limitMbit", limitMbit?.toString()).putString("hours", hours)
        .putBoolean("onlyUnmetered", onlyUnmetered).putBoolean("onlyCharging", onlyCharging).apply()

    fun settings(consent: Consent, state: Path, allowed: () -> Boolean) = Settings(
        api = api.trimEnd('/'),
        apiKey = apiKey,
        name = name,
        consent = consent,
        state = state,
        connections = connections,
        limitMbit = limitMbit,
        schedule = Schedule.parse(hours),
        allowed = allowed,
        model = Build.MODEL,
        osVersion = "Android ${Build.VERSION.RELEASE}",
    )

    companion object {
        fun load(context: Context): PeerPlan? {
            val kept = context.getSharedPreferences(STORE, Context.MODE_PRIVATE)
            val api = kept.getString("api", null) ?: return null
            return PeerPlan(
                api,
                kept.getString("apiKey", null) ?: return null,
                kept.getString("name", null) ?: return null,
                kept.getInt("connections", 4),
                kept.getString("limitMbit", null)?.toDoubleOrNull(),
                kept.getString("hours", null).orEmpty(),
                kept.getBoolean("onlyUnmetered", true),
                kept.getBoolean("onlyCharging", false),
            )
        }
    }
}

/** The owner's agreement as it was given on this device; withdrawing it ends sharing. */
class ConsentStore(private val context: Context) {
    private val kept = context.getSharedPreferences("psx-consent", Context.MODE_PRIVATE)

    fun current(): Consent? {
        val version = kept.getString("termsVersion", null) ?: return null
        if (version != TERMS_VERSION) return null
        return Consent(version, kept.getLong("acceptedAt", 0), kept.getString("method", null) ?: return null)
    }

    fun accept(method: String) = kept.edit().putString("termsVersion", TERMS_VERSION)
        .putLong("acceptedAt", System.currentTimeMillis()).putString("method", method).apply()

    fun withdraw() {
        forget()
        PeerService.stop(context)
    }

    /** The owner withdrew elsewhere: the dialog asks again. */
    fun forget() = kept.edit().clear().apply()
}
