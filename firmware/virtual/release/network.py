# SPDX-License-Identifier: MIT
"""Stand-in for the ESP32's `network` module: a station whose access point is the host.

Knows one access point (board.py --wifi). The host's own network carries the
sockets, whether the station is connected or not.
"""

import time

import esp32

STA_IF, AP_IF = 0, 1
STAT_IDLE, STAT_CONNECTING, STAT_GOT_IP = 1000, 1001, 1010
STAT_BEACON_TIMEOUT, STAT_NO_AP_FOUND, STAT_WRONG_PASSWORD, STAT_CONNECT_FAIL = 200, 201, 202, 203
STAT_ASSOC_FAIL, STAT_HANDSHAKE_TIMEOUT = 203, 204
STAT_NO_AP_FOUND_W_COMPATIBLE_SECURITY = 210
STAT_NO_AP_FOUND_IN_AUTHMODE_THRESHOLD = 211
STAT_NO_AP_FOUND_IN_RSSI_THRESHOLD = 212

access_point = ("Espressif", "")  # set by board.py
_JOIN_MS = 20
_interfaces = {}


def WLAN(interface=STA_IF):
    if not _interfaces:
        # The radio's driver keeps its settings in NVS: no room there, no radio.
        try:
            settings = esp32.NVS("nvs.net80211")
            for key in ("sta.ssid", "sta.pswd", "ap.ssid", "ap.passwd"):
                settings.set_blob(key, bytes(36))
            settings.set_i32("opmode", 1)
        except OSError as e:
            raise RuntimeError("Wifi Unknown Error 0x%04x" % -e.args[0])
    if interface not in _interfaces:
        _interfaces[interface] = _WLAN(interface)
    return _interfaces[interface]


class _WLAN:
    def __init__(self, interface):
        self._station = interface == STA_IF
        self._active = False
        self._ssid = None
        self._outcome = STAT_IDLE
        self._at = 0

    def active(self, on=None):
        if on is None:
            return self._active
        self._active = bool(on)
        if not on:
            self.disconnect()
        return self._active

    def connect(self, ssid=None, key=None):
        if not self._active or not self._station:
            raise OSError("Wifi Invalid Mode")
        self._ssid = ssid
        self._outcome = STAT_GOT_IP
        if ssid != access_point[0]:
            self._outcome = STAT_NO_AP_FOUND
        elif (key or "") != access_point[1]:
            self._outcome = STAT_WRONG_PASSWORD
        self._at = time.ticks_ms()

    def disconnect(self):
        self._outcome = STAT_IDLE

    def isconnected(self):
        return self.status() == STAT_GOT_IP

    def status(self, what=None):
        if what == "rssi":
            return -50
        joining = time.ticks_diff(time.ticks_ms(), self._at) < _JOIN_MS
        if self._outcome != STAT_IDLE and joining:
            return STAT_CONNECTING
        return self._outcome

    def ifconfig(self):
        if not self.isconnected():
            return ("0.0.0.0",) * 4
        return ("10.0.2.15", "255.255.255.0", "0.0.0.0", "0.0.0.0")

    def ipconfig(self, what):
        if what == "addr4":
            return self.ifconfig()[:2]
        raise ValueError("unknown config param")

    def config(self, *what, **settings):
        if what == ("ssid",):
            return self._ssid or ""
        if what == ("mac",):
            import machine

            return machine.unique_id()
        if what:
            raise ValueError("unknown config param")
