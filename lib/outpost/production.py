"""Production mode: the board's prompt is closed, for good.

Owns the NVS entry "prod" (i32): set once, by the image or by a signed command, and never taken
back by anything on the board. What it means is boot.py's.
"""

from . import agreed
from .errors import SignedError, number


def close():
    """Set it, and stop minding Ctrl-C at once. SignedError where it is not in flash afterwards."""
    import esp32
    import micropython

    try:
        nvs = esp32.NVS(agreed.NVS_NAMESPACE)
        nvs.set_i32(agreed.NVS_PRODUCTION, 1)
        nvs.commit()
        kept = nvs.get_i32(agreed.NVS_PRODUCTION)
    except OSError as e:
        raise SignedError("NVS did not keep it (error %d): sign it once more" % number(e), True)
    if kept != 1:
        raise SignedError("NVS did not keep it: sign it once more", True)
    micropython.kbd_intr(-1)
