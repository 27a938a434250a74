package psx.peer.android

import android.app.Notification
import android.app.NotificationChannel
import android.app.NotificationManager
import android.app.PendingIntent
import android.app.Service
import android.content.Context
import android.content.Intent
import android.content.pm.ServiceInfo
import android.net.ConnectivityManager
import android.net.Network
import android.net.NetworkCapabilities
import android.os.BatteryManager
import android.os.Build
import android.os.IBinder
import android.util.Log
import kotlin.concurrent.thread
import psx.peer.Device
import psx.peer.Refused
import psx.peer.Settings

/**
 * Keeps the device sharing while its notification stands, and stops it at once by the notification's button, by `stop`, or
 * when consent is withdrawn. It never starts itself: not at boot, and not after the system ended it.
 */
class PeerService : Service() {
    private var device: Device? = null
    private val onNetwork = object : ConnectivityManager.NetworkCallback() {
        override fun onCapabilitiesChanged(network: Network, capabilities: NetworkCapabilities) {
            device?.changed()
        }

        override fun onLost(network: Network) {
            device?.changed()
        }
    }

    override fun onBind(intent: Intent?): IBinder? = null

    override fun onStartCommand(intent: Intent?, flags: Int, startId: Int): Int {
        val plan = PeerPlan.load(this)
        val consent = ConsentStore(this).current()
        if (intent?.action == STOP || plan == null || consent == null) {
            stopSelf()
            return START_NOT_STICKY
        }
        showNotification()
        if (device == null) begin(plan.settings(consent, filesDir.toPath().resolve("psx-peer-state.json"), ::mayShare))
        return START_NOT_STICKY
    }

    private fun begin(settings: Settings) {
        val started = Device(settings, { Log.i(TAG, it) }, ended = { why ->
            if (why is Refused && why.withdrawn) ConsentStore(this).forget()
            stopSelf()
        })
        device = started
        connectivity().registerDefaultNetworkCallback(onNetwork)
        started.start()
    }

    /** As the owner allows: on an unmetered network, on the charger. */
    private fun mayShare(): Boolean {
        val plan = PeerPlan.load(this) ?: return false
        val network = connectivity().getNetworkCapabilities(connectivity().activeNetwork) ?: return false
        val unmetered = network.hasCapability(NetworkCapabilities.NET_CAPABILITY_NOT_METERED)
        val charging = (getSystemService(Context.BATTERY_SERVICE) as BatteryManager).isCharging
        return (unmetered || !plan.onlyUnmetered) && (charging || !plan.onlyCharging)
    }

    private fun connectivity() = getSystemService(Context.CONNECTIVITY_SERVICE) as ConnectivityManager

    private fun showNotification() {
        val manager = getSystemService(Context.NOTIFICATION_SERVICE) as NotificationManager
        manager.createNotificationChannel(
            NotificationChannel(CHANNEL, getString(R.string.psx_channel), NotificationManager.IMPORTANCE_LOW),
        )
        val stop = PendingIntent.getService(
            this, 0, Intent(this, PeerService::class.java).setAction(STOP), PendingIntent.FLAG_IMMUTABLE,
        )
        val notification = Notification.Builder(this, CHANNEL)
            .setContentTitle(getString(R.string.psx_sharing))
            .setSmallIcon(android.R.drawable.stat_sys_upload)
            .setOngoing(true)
            .addAction(Notification.Action.Builder(null, getString(R.string.psx_stop), stop).build())
            .build()
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.UPSIDE_DOWN_CAKE) {
            startForeground(NOTIFICATION, notification, ServiceInfo.FOREGROUND_SERVICE_TYPE_SPECIAL_USE)
        } else {
            startForeground(NOTIFICATION, notification)
        }
    }

    override fun onDestroy() {
        val ending = device ?: return
        device = null
        connectivity().unregisterNetworkCallback(onNetwork)
        thread { ending.stop() } // it waits for its sockets, which the main thread must not
    }

    companion object {
        private const val TAG = "psx"
        private const val CHANNEL = "psx-sharing"
        private const val NOTIFICATION = 7001
        private const val STOP = "psx.peer.STOP"

        fun start(context: Context) = context.startForegroundService(Intent(context, PeerService::class.java)).let { }

        fun stop(context: Context) = context.stopService(Intent(context, PeerService::class.java)).let { }
    }
}
