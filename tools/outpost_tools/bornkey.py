"""The key that a board was born with, read over its prompt and remembered before it ships.

What is remembered here is all that a rotation believes of the device later: secrets are sealed to
this key, requests are endorsed by it, and its certificate is the way in when the other keys are
forbidden. It owns nothing but the question to the board.
"""

import base64
import binascii

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from outpost_tools import proof
from outpost_tools.errors import OutpostError
from outpost_tools.fleet import Fleet, Known, point_of
from outpost_tools.provision import check_key_is_alone, makes_keys
from outpost_tools.repl import Prompt

_BORN = """
import binascii
from outpost import identity, keystore, provision
print(identity.device_id(keystore.open_nvs()))
print(binascii.b2a_base64(provision.born()).decode().strip())
"""


def remember(prompt: Prompt, device_id: str, fleet: Fleet, replace: bool = False) -> Known:
    """Make the board's born key where it has none yet, and keep its public part in the book."""
    if not makes_keys(prompt):
        raise OutpostError(
            "A stock MicroPython has no born key: build its image with `outpost image "
            f"{device_id} --seal-key`, so that new symmetric keys can be sealed to it."
        )
    try:
        name, text = prompt.run(_BORN).split()
        born = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise OutpostError("The board's answer is no certificate: try again.") from None
    if name != device_id:
        raise OutpostError(f"This board is {name!a}, not {device_id!r}: nothing was kept.")
    point = point_of(born)
    certificate = x509.load_der_x509_certificate(born)
    try:
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, InvalidSignature):
        raise OutpostError("The board's born certificate is not signed with its key.") from None
    if proof.common_name(certificate.subject) != device_id:
        raise OutpostError(f"The board's born certificate is not for {device_id!r}.")
    check_key_is_alone(fleet, device_id, point)
    return fleet.remember(device_id, born_certificate=born, made_on="device", replace=replace)
