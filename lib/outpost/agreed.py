"""What the device and the host tools must agree on: names, places and limits.

Both sides import this one file (the host loads it from lib/outpost), so it
holds plain constants only and nothing that MicroPython or CPython lacks.
"""

# Flash: partition labels (see firmware/boards/partitions-*.csv).
VFS_LABEL = "vfs"
OUTBOX_LABEL = "outbox"

# NVS: one namespace, blobs unless said. Keys are at most 15 characters.
NVS_NAMESPACE = "outpost"
NVS_DEVICE_ID = "id"  # UTF-8
NVS_KEY_PRIMARY = "sas1"  # base64 text of the symmetric key, as IoT Hub shows it
NVS_KEY_SECONDARY = "sas2"
NVS_TIME_FLOOR = "floor"  # i32, seconds since 2000-01-01 UTC
NVS_BOOT = "boot"  # i32, number of the last start that made a message without a clock
NVS_MOMENTS = "moments"  # up to four times: boot number, seconds since 2000 at its uptime 0
NVS_RECORD_SIZE_PREFIX = "mfl"  # i32, + 8 hex digits of SHA-256("host:port")

# littlefs.
CONFIG_PATH = "/config.json"
FACTORY_ROOTS_PATH = "/trust/factory.bin"

# Identity: the characters and length IoT Hub takes in a device id.
DEVICE_ID_MAX = 128
DEVICE_ID_PUNCTUATION = "-:.+%_#*?!(),=@;$'"
KEY_MIN_BYTES = 16
KEY_MAX_BYTES = 64

# Trust: factory.bin is, for each root, a 2-byte big-endian length and the DER.
ROOTS_MAX_BYTES = 8192
ROOTS_MAX = 6

# Time.
UNIX_2000 = 946684800  # Unix time of 2000-01-01T00:00:00Z, where an ESP32's epoch lies

# TLS: RFC 6066 max_fragment_length; 0 stands for "not asked".
RECORD_SIZES = (512, 1024, 2048, 4096)
# The suites of the design in its order, by mbedtls's names.
SUITES_ECDSA = (
    "TLS-ECDHE-ECDSA-WITH-AES-128-GCM-SHA256",
    "TLS-ECDHE-ECDSA-WITH-AES-256-GCM-SHA384",
    "TLS-ECDHE-ECDSA-WITH-AES-128-CBC-SHA256",
    "TLS-ECDHE-ECDSA-WITH-AES-256-CBC-SHA384",
)
SUITES_RSA = (
    "TLS-ECDHE-RSA-WITH-AES-128-GCM-SHA256",
    "TLS-ECDHE-RSA-WITH-AES-256-GCM-SHA384",
    "TLS-ECDHE-RSA-WITH-AES-128-CBC-SHA256",
    "TLS-ECDHE-RSA-WITH-AES-256-CBC-SHA384",
)

# MQTT and IoT Hub.
API_VERSION = "2021-04-12"
KEEPALIVE_MIN_S = 10
KEEPALIVE_MAX_S = 1767
MESSAGE_MAX_BYTES = 262144  # IoT Hub's limit for one device-to-cloud message
EVENTS_TOPIC = "devices/%s/messages/events/"
EVENTS_PROPERTIES = "$.ct=application%2Fjson&$.ce=utf-8"
