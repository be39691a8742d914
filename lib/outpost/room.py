"""Room: whether the free memory still does for a connection. Keeps nothing."""

import gc

from micropython import const

from .errors import OutboxFull

_RESERVE_BYTES = const(12288)  # what a connection takes of the GC heap while it is made
_PIECE_BYTES = const(2048)  # of that, the most in one piece: a root certificate


def needed(online, in_pieces):
    """OutboxFull where too little memory is free for the connection that takes messages away.

    in_pieces  look too for enough of it in one piece, which takes longer
    """
    reserve = _RESERVE_BYTES // 2 if online else _RESERVE_BYTES
    if gc.mem_free() < reserve:
        gc.collect()
        if gc.mem_free() < reserve:
            raise OutboxFull(
                "only %d bytes of memory are free: this message was not taken" % gc.mem_free()
            )
    if in_pieces:
        try:
            bytearray(_PIECE_BYTES)
        except MemoryError:
            raise OutboxFull("the free memory is in pieces: this message was not taken")
