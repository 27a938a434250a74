package psx.peer.android

import android.Manifest
import android.app.Activity
import android.app.AlertDialog
import android.content.pm.PackageManager
import android.os.Build
import android.os.Bundle
import psx.peer.TERMS_TEXT

/** Shows what is shared and asks once; only then does the service start, behind a notification that the owner sees. */
class ConsentActivity : Activity() {
    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        if (ConsentStore(this).current() != null) {
            share()
            return
        }
        AlertDialog.Builder(this)
            .setTitle(R.string.psx_channel)
            .setMessage(TERMS_TEXT)
            .setPositiveButton(R.string.psx_agree) { _, _ ->
                ConsentStore(this).accept("dialog")
                share()
            }
            .setNegativeButton(R.string.psx_decline) { _, _ -> finish() }
            .setOnCancelListener { finish() }
            .show()
    }

    private fun share() {
        val mayNotify = Build.VERSION.SDK_INT < Build.VERSION_CODES.TIRAMISU ||
            checkSelfPermission(Manifest.permission.POST_NOTIFICATIONS) == PackageManager.PERMISSION_GRANTED
        if (mayNotify) {
            PeerService.start(this)
            finish()
        } else {
            requestPermissions(arrayOf(Manifest.permission.POST_NOTIFICATIONS), 1)
        }
    }

    /** Without a visible notification nothing is shared. */
    override fun onRequestPermissionsResult(request: Int, names: Array<out String>, results: IntArray) {
        if (results.firstOrNull() == PackageManager.PERMISSION_GRANTED) PeerService.start(this)
        finish()
    }
}
