"""The cipher suites that an audit asks for: number, IANA's name, and what we think of them.

The design's own come from lib/outpost/agreed.py, so that what is asked is what devices offer. It
never says what a suite does; the kind alone is told: `ours`, `forbidden` or `other`.
"""

from dataclasses import dataclass
from typing import Literal

from outpost_tools import agreed

Kind = Literal["ours", "forbidden", "other"]
EMPTY_RENEGOTIATION_INFO = 0x00FF


@dataclass(frozen=True)
class Suite:
    code: int
    name: str

    @property
    def kind(self) -> Kind:
        if self.name in OURS:
            return "ours"
        weak = ("_NULL_", "RC4", "_DES_", "3DES", "_anon_", "EXPORT", "_SHA", "_MD5", "SEED")
        forward = self.name.startswith(("TLS_ECDHE_", "TLS_DHE_", "TLS_AES_", "TLS_CHACHA20_"))
        ends_weak = self.name.endswith(("_SHA", "_MD5")) or any(w in self.name for w in weak[:6])
        return "other" if forward and not ends_weak else "forbidden"

    @property
    def ecdsa(self) -> bool:
        return "_ECDHE_ECDSA_" in self.name


OURS = tuple(name.replace("-", "_") for name in agreed.SUITES)

# TLS 1.0 to 1.2. What needs a pre-shared key or Kerberos is not here: no device has one.
_CLASSIC = """
c02b TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256      c02c TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
c02f TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256        c030 TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
c023 TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256      c024 TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384
c027 TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256        c028 TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384
cca9 TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
cca8 TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
ccaa TLS_DHE_RSA_WITH_CHACHA20_POLY1305_SHA256
c0ac TLS_ECDHE_ECDSA_WITH_AES_128_CCM             c0ad TLS_ECDHE_ECDSA_WITH_AES_256_CCM
c0ae TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8           c0af TLS_ECDHE_ECDSA_WITH_AES_256_CCM_8
c05c TLS_ECDHE_ECDSA_WITH_ARIA_128_GCM_SHA256     c060 TLS_ECDHE_RSA_WITH_ARIA_128_GCM_SHA256
c072 TLS_ECDHE_ECDSA_WITH_CAMELLIA_128_CBC_SHA256 c076 TLS_ECDHE_RSA_WITH_CAMELLIA_128_CBC_SHA256
009e TLS_DHE_RSA_WITH_AES_128_GCM_SHA256          009f TLS_DHE_RSA_WITH_AES_256_GCM_SHA384
0067 TLS_DHE_RSA_WITH_AES_128_CBC_SHA256          006b TLS_DHE_RSA_WITH_AES_256_CBC_SHA256
c009 TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA         c00a TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA
c013 TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA           c014 TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA
0033 TLS_DHE_RSA_WITH_AES_128_CBC_SHA             0039 TLS_DHE_RSA_WITH_AES_256_CBC_SHA
0032 TLS_DHE_DSS_WITH_AES_128_CBC_SHA             0038 TLS_DHE_DSS_WITH_AES_256_CBC_SHA
002f TLS_RSA_WITH_AES_128_CBC_SHA                 0035 TLS_RSA_WITH_AES_256_CBC_SHA
003c TLS_RSA_WITH_AES_128_CBC_SHA256              003d TLS_RSA_WITH_AES_256_CBC_SHA256
009c TLS_RSA_WITH_AES_128_GCM_SHA256              009d TLS_RSA_WITH_AES_256_GCM_SHA384
c09c TLS_RSA_WITH_AES_128_CCM                     c09d TLS_RSA_WITH_AES_256_CCM
c0a0 TLS_RSA_WITH_AES_128_CCM_8                   c0a1 TLS_RSA_WITH_AES_256_CCM_8
c050 TLS_RSA_WITH_ARIA_128_GCM_SHA256             c051 TLS_RSA_WITH_ARIA_256_GCM_SHA384
0041 TLS_RSA_WITH_CAMELLIA_128_CBC_SHA            0084 TLS_RSA_WITH_CAMELLIA_256_CBC_SHA
0096 TLS_RSA_WITH_SEED_CBC_SHA                    000a TLS_RSA_WITH_3DES_EDE_CBC_SHA
0005 TLS_RSA_WITH_RC4_128_SHA                     0004 TLS_RSA_WITH_RC4_128_MD5
0009 TLS_RSA_WITH_DES_CBC_SHA                     0016 TLS_DHE_RSA_WITH_3DES_EDE_CBC_SHA
c008 TLS_ECDHE_ECDSA_WITH_3DES_EDE_CBC_SHA        c012 TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA
c007 TLS_ECDHE_ECDSA_WITH_RC4_128_SHA             c011 TLS_ECDHE_RSA_WITH_RC4_128_SHA
c004 TLS_ECDH_ECDSA_WITH_AES_128_CBC_SHA          c00e TLS_ECDH_RSA_WITH_AES_128_CBC_SHA
c02d TLS_ECDH_ECDSA_WITH_AES_128_GCM_SHA256       c031 TLS_ECDH_RSA_WITH_AES_128_GCM_SHA256
0034 TLS_DH_anon_WITH_AES_128_CBC_SHA             003a TLS_DH_anon_WITH_AES_256_CBC_SHA
00a6 TLS_DH_anon_WITH_AES_128_GCM_SHA256          c018 TLS_ECDH_anon_WITH_AES_128_CBC_SHA
c006 TLS_ECDHE_ECDSA_WITH_NULL_SHA                c010 TLS_ECDHE_RSA_WITH_NULL_SHA
0001 TLS_RSA_WITH_NULL_MD5                        0002 TLS_RSA_WITH_NULL_SHA
003b TLS_RSA_WITH_NULL_SHA256                     0003 TLS_RSA_EXPORT_WITH_RC4_40_MD5
0008 TLS_RSA_EXPORT_WITH_DES40_CBC_SHA
"""
_NEW = """
1301 TLS_AES_128_GCM_SHA256   1302 TLS_AES_256_GCM_SHA384   1303 TLS_CHACHA20_POLY1305_SHA256
1304 TLS_AES_128_CCM_SHA256   1305 TLS_AES_128_CCM_8_SHA256
"""


def _table(text: str) -> dict[int, Suite]:
    words = iter(text.split())
    return {int(code, 16): Suite(int(code, 16), name) for code, name in zip(words, words)}  # noqa: B905


CLASSIC = _table(_CLASSIC)
TLS_1_3 = _table(_NEW)
_BY_NAME = {suite.name: suite for suite in CLASSIC.values()}
DESIGN = tuple(_BY_NAME[name] for name in OURS)
DESIGN_ECC = tuple(suite for suite in DESIGN if suite.ecdsa)
DESIGN_RSA = tuple(suite for suite in DESIGN if not suite.ecdsa)
# In the order in which mbedtls sends them: by strength, ECDSA before RSA.
OFFERED = tuple(s for pair in zip(DESIGN_ECC, DESIGN_RSA, strict=True) for s in pair)
REST = tuple(suite for suite in CLASSIC.values() if suite.kind != "ours")
# Before TLS 1.2 there is no suite with a hash of its own.
OLD = tuple(s for s in CLASSIC.values() if s.name.endswith(("_SHA", "_MD5")))


def name_of(code: int) -> str:
    known = CLASSIC.get(code) or TLS_1_3.get(code)
    return known.name if known else f"0x{code:04x}"
