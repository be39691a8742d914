"""What the device and the host must agree on, read from the device's own file.

lib/outpost/agreed.py and formats.py hold plain constants. Loading them by path keeps the rule that
this package never imports lib/outpost, and leaves one place where a limit or a name is written.
"""

import importlib.util
from types import ModuleType

from outpost_tools.paths import tree


def _load(name: str) -> ModuleType:
    path = tree() / "lib" / "outpost" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"outpost_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_device = _load("agreed")
_slots = _load("slots")
_formats = _load("formats")
_suites = _load("suites")

NVS_NAMESPACE: str = _device.NVS_NAMESPACE
NVS_DEVICE_ID: str = _device.NVS_DEVICE_ID
NVS_KEY_PRIMARY: str = _device.NVS_KEY_PRIMARY
NVS_KEY_SECONDARY: str = _device.NVS_KEY_SECONDARY
NVS_TIME_FLOOR: str = _device.NVS_TIME_FLOOR
VFS_LABEL: str = _device.VFS_LABEL
CONFIG_PATH: str = _device.CONFIG_PATH
FACTORY_ROOTS_PATH: str = _device.FACTORY_ROOTS_PATH
ROOTS_MAX: int = _device.ROOTS_MAX
ROOTS_MAX_BYTES: int = _device.ROOTS_MAX_BYTES
DEVICE_ID_MAX: int = _device.DEVICE_ID_MAX
DEVICE_ID_PUNCTUATION: str = _device.DEVICE_ID_PUNCTUATION
KEY_MIN_BYTES: int = _device.KEY_MIN_BYTES
KEY_MAX_BYTES: int = _device.KEY_MAX_BYTES
UNIX_2000: int = _device.UNIX_2000
RECORD_SIZES: tuple[int, ...] = _device.RECORD_SIZES
SUITES: tuple[str, ...] = _suites.SUITES_ECDSA + _suites.SUITES_RSA
KEEPALIVE_MIN_S: int = _device.KEEPALIVE_MIN_S
KEEPALIVE_MAX_S: int = _device.KEEPALIVE_MAX_S
API_VERSION: str = _device.API_VERSION
MESSAGE_MAX_BYTES: int = _device.MESSAGE_MAX_BYTES
EVENTS_TOPIC: str = _device.EVENTS_TOPIC
NVS_RECORDS: tuple[str, str] = _device.NVS_RECORDS
NVS_CURRENT: str = _device.NVS_CURRENT
NVS_BORN: str = _device.NVS_BORN
RECORD_MAGIC: bytes = _device.RECORD_MAGIC
RECORD_SYMMETRIC: int = _device.RECORD_SYMMETRIC
RECORD_X509: int = _device.RECORD_X509
SLOT_NONE: int = _device.SLOT_NONE
CHAIN_MAX_BYTES: int = _device.CHAIN_MAX_BYTES
PRIVATE_KEY_MAX_BYTES: int = _device.PRIVATE_KEY_MAX_BYTES
SIGNERS_PATH: str = _device.SIGNERS_PATH
SIGNERS_MAX: int = _device.SIGNERS_MAX
SIGNERS_MAX_BYTES: int = _device.SIGNERS_MAX_BYTES
COMMAND_METHOD: str = _device.COMMAND_METHOD
COMMAND_MAX_BYTES: int = _device.COMMAND_MAX_BYTES
COMMAND_ROLES: tuple[str, ...] = _device.COMMAND_ROLES
COUNTER_MAX: int = _device.COUNTER_MAX
IDENTITY_METHOD: str = _device.IDENTITY_METHOD
KEY_ID_LABEL: bytes = _device.KEY_ID_LABEL
ENDORSEMENT: str = _device.ENDORSEMENT
NVS_SEAL: str = _device.NVS_SEAL
NVS_PAYLOAD_KEY: str = _device.NVS_PAYLOAD_KEY
PAYLOAD_KEY_BYTES: int = _device.PAYLOAD_KEY_BYTES
NVS_PRODUCTION: str = _device.NVS_PRODUCTION

ENVELOPE_MAGIC: bytes = _device.ENVELOPE_MAGIC
ENVELOPE_FORMAT: int = _formats.ENVELOPE_FORMAT
LINK_MARK: int = _formats.LINK_MARK
ROLE_TRUST: int = _device.ROLE_TRUST
ROLE_SOFTWARE: int = _device.ROLE_SOFTWARE
ENVELOPE_KEYS_MAX: int = _formats.ENVELOPE_KEYS_MAX
SIGNATURES_MAX: int = _formats.SIGNATURES_MAX
VERSION_MAX: int = _formats.VERSION_MAX
BUNDLE_MAX_BYTES: int = _formats.BUNDLE_MAX_BYTES
TRUST_FILE_MAX_BYTES: int = _formats.TRUST_FILE_MAX_BYTES
SECTION_ROOT: int = _device.SECTION_ROOT
SECTION_HOST: int = _device.SECTION_HOST
SECTION_RECOVERY: int = _formats.SECTION_RECOVERY
SECTION_SOFTWARE: int = _device.SECTION_SOFTWARE
SECTION_SIGNERS: int = _device.SECTION_SIGNERS
SECTION_MUST_KNOW: int = _formats.SECTION_MUST_KNOW
FLEET_NAME_MAX: int = _device.FLEET_NAME_MAX
HOSTS_MAX: int = _formats.HOSTS_MAX
HOST_MAX_BYTES: int = _formats.HOST_MAX_BYTES
RECOVERY_MAX: int = _formats.RECOVERY_MAX
TRUST_SLOTS: tuple[str, str] = _device.TRUST_SLOTS
DELIVERY_METHOD: str = _device.DELIVERY_METHOD
DELIVERY_PIECE_BYTES: int = _device.DELIVERY_PIECE_BYTES
APP_MAGIC: bytes = _slots.APP_MAGIC
APP_FORMAT: int = _slots.APP_FORMAT
APP_KIND: str = _slots.APP_KIND
APP_MAX_BYTES: int = _slots.APP_MAX_BYTES
FIRMWARE_KIND: str = _slots.FIRMWARE_KIND
FIRMWARE_MAGIC: bytes = _slots.FIRMWARE_MAGIC
FIRMWARE_FORMAT: int = _slots.FIRMWARE_FORMAT
FIRMWARE_RECORD_MAX: int = _slots.FIRMWARE_RECORD_MAX
APP_OUTCOMES: tuple[str, ...] = _slots.APP_OUTCOMES
APP_FILES_MAX: int = _slots.APP_FILES_MAX
APP_PATH_MAX: int = _slots.APP_PATH_MAX
APP_DEPTH_MAX: int = _slots.APP_DEPTH_MAX
APP_LABEL_MAX: int = _slots.APP_LABEL_MAX
APP_VERSION_MAX: int = _slots.APP_VERSION_MAX
APP_SLOTS: tuple[str, str] = _slots.APP_SLOTS
TRUST_OUTCOMES: tuple[str, ...] = _formats.TRUST_OUTCOMES
TRUST_KIND: str = _formats.TRUST_KIND
