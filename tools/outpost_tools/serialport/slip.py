"""SLIP: packets between 0xc0 bytes, as the ROM loader and esptool frame them.

It owns the packet that is coming in. What is longer than any command is dropped, whole.
"""

END, ESCAPE = 0xC0, 0xDB
PACKET_MAX_BYTES = 0x8000
_MEANT = {0xDC: END, 0xDD: ESCAPE}


class Packets:
    """Bytes in, whole packets out. Noise between packets is not kept."""

    def __init__(self) -> None:
        self._packet: bytearray | None = None
        self._escaped = False

    def feed(self, data: bytes) -> list[bytes]:
        whole = []
        for byte in data:
            if byte == END:
                # Each END may begin a packet: so noise spoils one packet and not the next as well.
                if self._packet:
                    whole.append(bytes(self._packet))
                self._packet = bytearray()
                self._escaped = False
            elif self._packet is not None:
                self._take(byte)
        return whole

    def _take(self, byte: int) -> None:
        assert self._packet is not None
        if self._escaped:
            self._escaped = False
            if byte not in _MEANT:
                self._packet = None
                return
            byte = _MEANT[byte]
        elif byte == ESCAPE:
            self._escaped = True
            return
        self._packet.append(byte)
        if len(self._packet) > PACKET_MAX_BYTES:
            self._packet = None


def framed(packet: bytes) -> bytes:
    escaped = packet.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc")
    return b"\xc0" + escaped + b"\xc0"
