"""What device and host must agree on of envelopes and of changes of trust: agreed.py's other half.

Apart, so that a device has it in memory only while it installs or reports. Plain constants alone.
"""

# Envelopes: trust bundles and software packages (docs/trust-bundle.md, byte by byte).
ENVELOPE_FORMAT = 1
LINK_MARK = 0x4C  # "L", before a head that comes without its body; no envelope begins with it
ENVELOPE_KEYS_MAX = 8
SIGNATURES_MAX = 16
VERSION_MAX = 0x7FFFFFFF  # versions are kept in NVS as i32
BUNDLE_MAX_BYTES = 8192  # a trust bundle, head to end
TRUST_FILE_MAX_BYTES = 16384  # what is delivered: links and a bundle
TRUST_KIND = "trust"  # of a file to deliver
SECTION_RECOVERY = 3
SECTION_MUST_KNOW = 128  # from here on a reader refuses what it does not know
HOSTS_MAX = 4
HOST_MAX_BYTES = 253
RECOVERY_MAX = 3

# NVS, each an i32 (docs/trust.md).
NVS_TRUST_TRIAL = "tr-try"  # 0 or 1: the slot of the bundle on trial
NVS_TRUST_LIVES = "tr-lives"  # how many lives of the device began with a bundle on trial
NVS_TRUST_HIGH = "tr-high"  # the highest version that was ever in use
NVS_TRUST_FLOOR = "tr-floor"  # the lowest version that may still be used
NVS_TRUST_CHANGE = "tr-last"  # version of the last change that was tried
NVS_TRUST_OUTCOME = "tr-out"  # and its outcome, a number of TRUST_OUTCOMES
NVS_TRUST_MISSED = "tr-miss"  # how often no server could be verified, 3 at most
NVS_TRUST_SINCE = "tr-since"  # seconds since 2000: since when no server can be verified
NVS_TRUST_REPORTED = "tr-rep"  # CRC-32 of what was reported last
TRUST_OUTCOMES = (
    "none",
    "on trial",
    "in use",
    "the hub is not trusted with it",
    "the hub was not reached with it in time",
    "the hub acknowledged nothing in time",
    "the device was restarted too often with it",
    "it was refused",
)
