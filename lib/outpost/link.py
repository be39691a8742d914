"""Link: the Wi-Fi station. Outbound only: the access-point interface is switched off.

Owns no flash. Blocks at most `deadline_ms` while it waits for an address.
"""

import time

from .errors import LinkError

_STATUS = {
    200: "the access point stopped answering",
    201: "no access point with that name was found: check wifi.ssid in config.json",
    202: "the access point refused the key: check wifi.key in config.json",
    203: "the access point refused the association",
    204: "the handshake with the access point timed out: check wifi.key in config.json",
    210: "no access point with a security this device takes was found",
    211: "no access point with a security this device takes was found",
    212: "the access point's signal is too weak",
}


class Link:
    def __init__(self, ssid, key):
        self._ssid = ssid
        self._key = key
        self._wlan = None

    def up(self):
        return self._wlan is not None and self._wlan.isconnected()

    def connect(self, deadline_ms=15000):
        """Bring the station up; returns its address. LinkError says why not."""
        import network

        try:
            if self._wlan is None:
                network.WLAN(network.AP_IF).active(False)
                self._wlan = network.WLAN(network.STA_IF)
            self._wlan.active(True)
            if not self._wlan.isconnected():
                self._wlan.connect(self._ssid, self._key)
        except (OSError, RuntimeError) as e:
            # RuntimeError 0x1105 is what a full NVS makes of WLAN() (stock behaviour).
            self._wlan = None
            raise LinkError("the radio did not start (%s): is the NVS partition full?" % e)
        start = time.ticks_ms()
        while not self._wlan.isconnected():
            status = self._wlan.status()
            if status in _STATUS:
                break
            if time.ticks_diff(time.ticks_ms(), start) > deadline_ms:
                break
            time.sleep_ms(20)
        if not self._wlan.isconnected():
            why = _STATUS.get(
                self._wlan.status(), "it gave no address in %d s" % (deadline_ms // 1000)
            )
            self._wlan.disconnect()
            raise LinkError("Wi-Fi '%s': %s" % (self._ssid, why))
        return self._wlan.ifconfig()[0]
