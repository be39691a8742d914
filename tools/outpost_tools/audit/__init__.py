"""`outpost audit`: what a TLS endpoint offers, and whether devices will connect to it.

    suites   which cipher suites are asked for, by number, name and kind
    hello    the bytes of a ClientHello, as a device or an older client would send it
    wire     one question: a connection, a ClientHello, and what comes back in the clear
    finish   a whole handshake, to see whether a device without a certificate gets through
    chain    the judgement of a device (mbedtls and its profile) over a chain of certificates
    survey   all the questions, and the report made of the answers
    report   what is told, as a person or a program wants it

It never sends anything but handshakes: no name, no key, no message. It verifies nothing while it
asks, and says afterwards what a device would have found.
"""

from outpost_tools.audit.survey import NotAsked, Target, Verdict, survey, verdict

__all__ = ["NotAsked", "Target", "Verdict", "survey", "verdict"]
