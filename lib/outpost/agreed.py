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
NVS_PAYLOAD_KEY = "payload"  # 32 bytes: A128CBC-HS256, for protected payloads
PAYLOAD_KEY_BYTES = 32
NVS_BOOT = "boot"  # i32, number of the last start that made a message without a clock
NVS_MOMENTS = "moments"  # up to four times: boot number, seconds since 2000 at its uptime 0
NVS_SEEN = "seen"  # 8 bytes of SHA-256 of each of the last message ids, oldest first
NVS_RECORD_SIZE_PREFIX = "mfl"  # i32, + 8 hex digits of SHA-256("host:port")

# littlefs.
CONFIG_PATH = "/config.json"
FACTORY_ROOTS_PATH = "/trust/factory.bin"

# Identity: the characters and length IoT Hub takes in a device id.
DEVICE_ID_MAX = 128
DEVICE_ID_PUNCTUATION = "-:.+%_#*?!(),=@;$'"
KEY_MIN_BYTES = 16
KEY_MAX_BYTES = 64

# Signed commands (docs/signed-commands.md): JWS in compact form, ES256.
SIGNERS_PATH = "/trust/signers.json"
SIGNERS_MAX_BYTES = 2048
SIGNERS_MAX = 8
FLEET_NAME_MAX = 64
COMMAND_METHOD = "outpost.command"
COMMAND_MAX_BYTES = 4096
COMMAND_PACKET_BYTES = 4352  # the MQTT packet that such a command comes in
COMMAND_ROLES = ("keys", "trust", "software")
COUNTER_MAX = 0x7FFFFFFF
NVS_COUNTER_PREFIX = "ctr-"  # i32, + role: the counter of the last command taken

# Rotation of keys over the air (docs/rotation.md).
IDENTITY_METHOD = "outpost.identity"
KEY_ID_LABEL = b"outpost key id"
ENDORSEMENT = "outpost-csr-1\n%s\n%s\n%d\n"  # fleet, device, counter; the CSR's DER follows
NVS_SEAL = "seal"  # stock boards: the private key, 32 bytes, that opens sealed secrets
NVS_KEY_SINCE = "idsince"  # i32, seconds since 2000: since when the key in use is in use
NVS_KEY_SEQ = "idseq"  # i32: the record's seq that "idsince" is of

# Identity records (docs/identity-device.md, byte by byte). One of the two entries is in use:
# i32 "idcur" says which. A candidate is in the other one, and i32 "idtry" names it.
NVS_RECORDS = ("ida", "idb")
NVS_CURRENT = "idcur"  # i32, 0 or 1: index into NVS_RECORDS
NVS_TRIAL = "idtry"  # i32, likewise: the candidate on trial
NVS_TRIAL_LIVES = "idlives"  # i32: how many lives of the device began with it on trial
NVS_ONBOARD = "idonb"  # a record: what DPS is asked with, where it differs from the one in use
NVS_BORN = "born"  # DER: self-signed certificate of the born key
NVS_HUB = "hub"  # UTF-8, four lines: hub, device id, id scope, registration id, as DPS assigned
# A record: magic, seq u32, kind u8, body, CRC-32 of all before; numbers are little-endian.
#   symmetric       u8 length and bytes of the primary, u8 length and bytes of the secondary
#                   (raw keys; the secondary's length may be 0)
#   x509, signer    u8 key slot, u16 length and DER of the chain, leaf first, u16 length and
#                   DER (SEC 1) of the private key: 0 but on a stock MicroPython, without slots
RECORD_MAGIC = b"OPK1"
RECORD_SYMMETRIC = 1
RECORD_X509 = 2
RECORD_SIGNER = 3
SLOT_NONE = 255  # the key is in the record, or behind an external signer
CHAIN_MAX_BYTES = 3072
PRIVATE_KEY_MAX_BYTES = 256
SLOT_BORN = 0  # never used up: seals secrets, endorses requests, and is the emergency's way in
SLOTS_TLS = (1, 2, 3)  # the key in use, the next one, and one that DPS is asked with

# Trust. The factory.bin of older images: for each root a 2-byte big-endian length and the DER.
ROOTS_MAX_BYTES = 8192
ROOTS_MAX = 6

# The provisioning service (DPS) over MQTT.
DPS_HOST = "global.azure-devices-provisioning.net"
DPS_API_VERSION = "2019-03-31"
DPS_API_VERSION_CSR = "2025-07-01-preview"  # the first whose registrations may carry a request

# Time.
UNIX_2000 = 946684800  # Unix time of 2000-01-01T00:00:00Z, where an ESP32's epoch lies

# TLS: RFC 6066 max_fragment_length; 0 stands for "not asked".
RECORD_SIZES = (512, 1024, 2048, 4096)

# MQTT and IoT Hub.
API_VERSION = "2021-04-12"
WATCHDOG_S = 300  # longer than a whole walk may take, every wait in it at its deadline
KEEPALIVE_MIN_S = 10
KEEPALIVE_MAX_S = 1767
MESSAGE_MAX_BYTES = 262144  # IoT Hub's limit for one device-to-cloud message
RESERVED_METHODS = "outpost."  # names of methods that only the library may take
EVENTS_TOPIC = "devices/%s/messages/events/"
EVENTS_PROPERTIES = "$.ct=application%2Fjson&$.ce=utf-8"
EVENTS_SEALED = "$.ct=application%2Fjose&$.ce=utf-8"

# Trust bundles (docs/trust-bundle.md): what a running device needs. The rest is in formats.py.
ENVELOPE_MAGIC = b"OPTB"
ROLE_TRUST = 1
ROLE_SOFTWARE = 2
SECTION_ROOT = 1
SECTION_HOST = 2
SECTION_SOFTWARE = 4
SECTION_SIGNERS = 5
TRUST_SLOTS = ("/trust/a.bin", "/trust/b.bin")
NVS_TRUST_SLOT = "tr-slot"  # i32, 0 or 1: the bundle in use; absent: the factory's


# Delivery of files in pieces (docs/delivery.md).
DELIVERY_METHOD = "outpost.deliver"
DELIVERY_PIECE_BYTES = 2048  # of the file, in one call
DELIVERY_PACKET_BYTES = 3584  # the MQTT packet that such a call comes in
LIBRARY_PROPERTY = "outpost"  # desired and reported property that is the library's own
STAGE_PATH = "/stage"  # for each kind KIND.bin, and KIND.txt: its size and its SHA-256

# What a device needs to connect when its file system is gone (kit.py): a blob in NVS, whose
# parts are each a 2-byte length and the bytes: config.json, the bundle in use with the one root
# that anchored the last connection, signers.json; then the CRC-32 of it all.
NVS_RESCUE = "rescue"
NVS_RESCUE_MARK = "rs-mark"  # i32: of what the blob was made
NVS_RESCUE_AGAIN = "rs-do"  # i32: 1 while the file system is being made anew
RESCUE_MAX_BYTES = 3600  # fits one page of the NVS

# Production mode (docs/flashing.md): set once, never taken back by anything on the board.
NVS_PRODUCTION = "prod"  # i32: 1 where the prompt is closed
