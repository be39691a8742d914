"""Configuration: /config.json, checked field by field before it is used.

All that is wrong is named in one sentence. Holds no secret but the Wi-Fi key,
which it never prints. Writes nothing.
"""

import os

from . import agreed
from .errors import ConfigError
from .json_in import parse


class Config:
    """The checked fields as attributes.

    hub            host name of the MQTT endpoint (IoT Hub's name); None where DPS assigns it
    dps            Dps, or None: the provisioning service that assigns the hub
    gateway_host   the server to speak TLS with instead of the hub, or None
    port           1 to 65535
    wifi_ssid, wifi_key
    sntp           list of (host, port)
    record_size    "auto", 0 (do not ask), 512, 1024, 2048 or 4096
    ecc_only       offer the four ECDSA suites alone
    keepalive_s    10 to 1767
    backoff_s      (first, longest) wait between attempts, seconds
    queue          messages that may wait in RAM, 1 to 256
    rotation_days  age at which a key is due for another one, 0 (never) to 3650
    renewal_days   days before its end at which a certificate is due, 0 (never) to 365
    profile        "iothub", or "generic" for any other MQTT broker
    incoming_bytes the longest packet that is taken in, 512 to 131072
    watchdog_s     seconds without progress after which the board resets, 60 to 3600; 0: never
    full           what a full outbox does: 0 refuses, 1 drops the oldest, 2 drops by priority
    batch          bytes of one message made of several small ones, 0: none is
    console        what the console shows: 0 nothing, 1 errors, 2 all
    protect        whether bodies are encrypted from end to end
    recovery_after_s  seconds without a hub that is trusted after which a bundle is looked for
    trial_s        seconds that a new trust bundle may take to connect
    """


class Dps:
    """id_scope, host, registration_id (None: the device id), csr (ask for a certificate)."""


def _text(name, value, longest, wrong):
    if not isinstance(value, str) or not value or len(value) > longest:
        wrong.append("%s must be a text of 1 to %d characters" % (name, longest))
        return ""
    for c in value:
        if ord(c) < 32 or ord(c) == 127:
            wrong.append("%s has a control character in it" % name)
            return ""
    return value


def _number(name, value, low, high, wrong):
    # bool is an int in Python, but `"port": true` is a mistake.
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        wrong.append("%s must be a whole number from %d to %d" % (name, low, high))
        return low
    return value


def host_port(value, default_port):
    """("host", port) of "host" or "host:port"; raises ValueError."""
    host, colon, port = value.partition(":")
    number = int(port) if colon else default_port
    if not 1 <= len(host) <= 255 or not 1 <= number <= 65535:
        raise ValueError(value)
    for c in host:
        if ord(c) <= 32 or ord(c) == 127:
            raise ValueError(value)
    return host, number


def _host(name, value, wrong):
    host = _text(name, value, 255, wrong)
    if "/" in host or ":" in host or " " in host:
        wrong.append("%s must be a host name alone, without scheme or port" % name)
    return host


def _dps(raw, wrong):
    dps = Dps()
    if not isinstance(raw, dict):
        wrong.append('dps must be an object such as {"id_scope": "0ne0000ABCD"}')
        return dps
    dps.id_scope = _name("dps.id_scope", raw.get("id_scope"), wrong)
    dps.host = _host("dps.host", raw.get("host", agreed.DPS_HOST), wrong)
    dps.registration_id = raw.get("registration_id")
    if dps.registration_id is not None:
        _name("dps.registration_id", dps.registration_id, wrong)
    dps.csr = raw.get("csr", False)
    if not isinstance(dps.csr, bool):
        wrong.append("dps.csr must be true or false")
    for name in raw:
        if name not in ("id_scope", "host", "registration_id", "csr"):
            wrong.append("dps.%s is not a field of the configuration" % name)
    return dps


def _trust(c, raw, wrong):
    if not isinstance(raw, dict):
        wrong.append('trust must be an object such as {"recovery_after_s": 3600}')
        raw = {}
    c.recovery_after_s = _number(
        "trust.recovery_after_s",
        raw.get("recovery_after_s", 3600),
        0,
        604800,
        wrong,
    )
    c.trial_s = _number("trust.trial_s", raw.get("trial_s", 600), 5, 3600, wrong)
    for name in raw:
        if name not in ("recovery_after_s", "trial_s"):
            wrong.append("trust.%s is not a field of the configuration" % name)


def _name(name, value, wrong):
    """What may stand in a DPS user name: letters, digits and - . _ :"""
    value = _text(name, value, 128, wrong)
    for c in value:
        if not ("a" <= c.lower() <= "z" or "0" <= c <= "9" or c in "-._:"):
            wrong.append("%s may hold letters, digits and - . _ : alone" % name)
            break
    return value


_FIELDS = (
    "hub",
    "gateway_host",
    "dps",
    "port",
    "wifi",
    "sntp",
    "record_size",
    "suites",
    "keepalive_s",
    "backoff_s",
    "queue",
    "rotation_days",
    "renewal_days",
    "profile",
    "incoming_bytes",
    "watchdog_s",
    "outbox_full",
    "batch_bytes",
    "protect",
    "console",
    "trust",
)
_CONSOLE = ("off", "errors", "all")
_POLICIES = ("refuse", "oldest", "priority")


def check(raw):
    """Config of the parsed JSON; ConfigError names every wrong or missing field."""
    if not isinstance(raw, dict):
        raise ConfigError(
            'config.json must hold a JSON object such as {"hub": "...", "wifi": {...}}', True
        )
    c = Config()
    wrong = []
    c.hub = c.dps = None
    if "hub" in raw:
        c.hub = _host("hub", raw["hub"], wrong)
    if "dps" in raw:
        c.dps = _dps(raw["dps"], wrong)
        if c.hub:
            wrong.append("hub and dps are both there: dps gives the hub")
    elif "hub" not in raw:
        wrong.append("hub is missing (the host name of the IoT Hub or broker)")
    c.gateway_host = raw.get("gateway_host")
    if c.gateway_host is not None:
        _host("gateway_host", c.gateway_host, wrong)
    c.port = _number("port", raw.get("port", 8883), 1, 65535, wrong)
    wifi = raw.get("wifi")
    if not isinstance(wifi, dict):
        wrong.append('wifi is missing or not an object such as {"ssid": "...", "key": "..."}')
    else:
        c.wifi_ssid = _text("wifi.ssid", wifi.get("ssid"), 32, wrong)
        if len(c.wifi_ssid.encode()) > 32:
            wrong.append("wifi.ssid is longer than the 32 bytes that a network's name may have")
        c.wifi_key = wifi.get("key", "")
        if not isinstance(c.wifi_key, str) or len(c.wifi_key) > 64 or 0 < len(c.wifi_key) < 8:
            wrong.append(
                "wifi.key must be a text of 8 to 64 characters, or empty for an open network"
            )
        for name in wifi:
            if name not in ("ssid", "key"):
                wrong.append("wifi.%s is not a field of the configuration" % name)
    c.sntp = []
    servers = raw.get("sntp", ["pool.ntp.org"])
    if not isinstance(servers, list) or not 1 <= len(servers) <= 4:
        wrong.append("sntp must be a list of 1 to 4 servers")
        servers = []
    for server in servers:
        try:
            c.sntp.append(host_port(server, 123))
        except (ValueError, AttributeError):
            wrong.append('sntp must hold texts such as "host" or "host:port"')
    if len(set(c.sntp)) < len(c.sntp):
        wrong.append("sntp names one server twice: two that agree must be two")
    size = raw.get("record_size", "auto")
    c.record_size = 0 if size == "none" else size
    # 512.0 equals 512 and True equals 1, but neither is a size.
    if isinstance(size, (bool, float)) or c.record_size not in ("auto", 0) + agreed.RECORD_SIZES:
        wrong.append('record_size must be "auto", "none", 512, 1024, 2048 or 4096')
    suites = raw.get("suites", "all")
    if suites not in ("all", "ecc"):
        wrong.append('suites must be "all" or "ecc"')
    c.ecc_only = suites == "ecc"
    c.keepalive_s = _number(
        "keepalive_s",
        raw.get("keepalive_s", 240),
        agreed.KEEPALIVE_MIN_S,
        agreed.KEEPALIVE_MAX_S,
        wrong,
    )
    backoff = raw.get("backoff_s", [1, 300])
    if not isinstance(backoff, list) or len(backoff) != 2:
        wrong.append("backoff_s must be two numbers: the first and the longest wait")
    else:
        first = _number("backoff_s[0]", backoff[0], 1, 3600, wrong)
        c.backoff_s = (first, _number("backoff_s[1]", backoff[1], first, 86400, wrong))
    c.queue = _number("queue", raw.get("queue", 32), 1, 256, wrong)
    c.rotation_days = _number("rotation_days", raw.get("rotation_days", 0), 0, 3650, wrong)
    c.renewal_days = _number("renewal_days", raw.get("renewal_days", 30), 0, 365, wrong)
    c.profile = raw.get("profile", "iothub")
    if c.profile not in ("iothub", "generic"):
        wrong.append('profile must be "iothub" or "generic"')
    c.incoming_bytes = _number(
        "incoming_bytes", raw.get("incoming_bytes", 4096), 512, 131072, wrong
    )
    c.watchdog_s = raw.get("watchdog_s", agreed.WATCHDOG_S)
    if c.watchdog_s != 0 or isinstance(c.watchdog_s, bool):
        _number("watchdog_s", c.watchdog_s, 60, 3600, wrong)
    console = raw.get("console", "all")
    if console not in _CONSOLE:
        wrong.append('console must be "all", "errors" or "off"')
        console = "all"
    c.console = _CONSOLE.index(console)
    policy = raw.get("outbox_full", "refuse")
    if policy not in _POLICIES:
        wrong.append('outbox_full must be "refuse", "oldest" or "priority"')
        policy = "refuse"
    c.full = _POLICIES.index(policy)
    c.batch = _number("batch_bytes", raw.get("batch_bytes", 0), 0, 16384, wrong)
    c.protect = raw.get("protect", "none") == "jwe"
    if raw.get("protect", "none") not in ("none", "jwe"):
        wrong.append('protect must be "none" or "jwe"')
    _trust(c, raw.get("trust", {}), wrong)
    for name in raw:
        if name not in _FIELDS:
            wrong.append("%s is not a field of the configuration" % name)
    if wrong:
        raise ConfigError("config.json: " + "; ".join(wrong), True)
    return c


def load(path=agreed.CONFIG_PATH):
    """Read and check the configuration. Allocates the file once (a few hundred bytes)."""
    try:
        # No more than it needs: in a heap with holes, 4 KB in one piece may not be there.
        size = min(os.stat(path)[6], 4096)
        with open(path) as f:
            text = f.read(size + 1)
    except OSError:
        raise ConfigError(
            "%s is not there: build the image with 'outpost image', or copy one to the board"
            % path,
            True,
        )
    except UnicodeError:
        raise ConfigError("%s is not UTF-8 text" % path, True)
    if len(text) > 4096:
        raise ConfigError("%s is longer than 4,096 bytes" % path, True)
    try:
        raw = parse(text.encode())
    except ValueError:
        raw = None
    if raw is None:
        raise ConfigError("%s is not JSON: check it with 'python3 -m json.tool'" % path, True)
    return check(raw)
