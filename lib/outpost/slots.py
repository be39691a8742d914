"""What device and host must agree on of updates (docs/updates.md): agreed.py's other half.

Apart, so that a device has it in memory only while it installs, tries or reports. Plain constants
alone. boot.py has some of these names too: it imports none.
"""

APP_KIND = "software"  # of a file to deliver
APP_MAX_BYTES = 393216  # of a package, as it is delivered
FIRMWARE_KIND = "firmware"
APP_SLOTS = ("/app/a", "/app/b")
APP_FILES_MAX = 128
APP_PATH_MAX = 64
APP_DEPTH_MAX = 4
APP_NAME_PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
APP_LABEL_MAX = 32
APP_MAGIC = b"OPAP"
APP_FORMAT = 1
APP_VERSION_MAX = 0x7FFFFFFF
APP_TRIAL_S = 1800  # new software connects in this time, or the one before it comes back
APP_LIVES = 3  # starts that it has for that
NVS_APP_CURRENT = "app-cur"  # i32, 0 or 1: the slot in use; none: the image's own application
NVS_APP_TRIAL = "app-try"  # i32: the slot on trial; 16 and more: the firmware, by its subtype
NVS_APP_LIVES = "app-lives"  # i32: how many starts began with it on trial
NVS_APP_SLOTS = ("app-a", "app-b")  # i32: the version in each slot
NVS_APP_TOP = "app-top"  # i32: the highest version that was ever kept
NVS_APP_LAST = "app-last"  # i32: the version whose trial ended last
NVS_APP_OUTCOME = "app-out"  # i32: how that ended, index into APP_OUTCOMES; 16 more: a firmware's
NVS_FIRMWARE_VERSION = "fw-ver"  # i32: the version of the firmware that was put on trial last
NVS_FIRMWARE_TOP = "fw-top"  # i32: the highest version of firmware that was ever kept
NVS_APP_COUNT = "app-n"  # i32: how many trials there have been
NVS_APP_REPORTED = "app-rep"  # i32: CRC-32 of what was reported last
FIRMWARE_MAGIC = b"OPFW"
FIRMWARE_FORMAT = 1
FIRMWARE_RECORD_MAX = 2048  # of the signed record, head to end
KEPT, ENDED, NO_CONNECTION, NOT_HEALTHY, REFUSED = 1, 2, 3, 4, 5  # indices into APP_OUTCOMES
APP_OUTCOMES = (
    "none",
    "in use",
    "it did not hold for a connection in its starts",
    "it made no connection in its time",
    "its health check did not pass in its time",
    "it was refused after a restart: its console says why",
)
