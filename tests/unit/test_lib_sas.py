"""The device's tokens, checked with Python's own HMAC."""

import base64
import hashlib
import hmac
import os
import urllib.parse


def test_hmac_sha256_agrees_with_python(micropython):
    cases = [
        (os.urandom(k), os.urandom(m))
        for k in (0, 1, 31, 32, 63, 64, 65, 200)
        for m in (0, 1, 64, 300)
    ]
    printed = micropython(
        "from outpost.sas import hmac_sha256\n"
        f"for key, message in {cases!r}:\n"
        "    print(hmac_sha256(key, message).hex())\n"
    )
    assert printed.split() == [hmac.new(k, m, hashlib.sha256).hexdigest() for k, m in cases]


def test_token_is_what_iot_hub_documents(micropython):
    key = os.urandom(32)
    token = micropython(
        "from outpost import sas\n"
        f"sign = lambda m: sas.hmac_sha256({key!r}, m)\n"
        "print(sas.token(sign, 'my-hub.azure-devices.net', \"a/b'c%d e\", 1795392000))\n"
    ).strip()
    scheme, _, rest = token.partition(" ")
    assert scheme == "SharedAccessSignature"
    fields = dict(part.split("=", 1) for part in rest.split("&"))
    resource = urllib.parse.quote("my-hub.azure-devices.net/devices/a/b'c%d e", safe="")
    assert fields["sr"] == resource
    assert fields["se"] == "1795392000"
    expected = hmac.new(key, f"{resource}\n1795392000".encode(), hashlib.sha256).digest()
    assert base64.b64decode(urllib.parse.unquote(fields["sig"])) == expected


def test_quote_agrees_with_rfc_3986(micropython):
    text = "".join(chr(c) for c in range(32, 127)) + "é€😀"
    printed = micropython(f"from outpost.sas import quote\nprint(quote({text!r}))\n").strip()
    assert printed == urllib.parse.quote(text, safe="-._~")
