"""The device as one task among others of an asyncio program. Costs nothing unless imported.

    import asyncio
    from outpost import Device, aio

    device = Device()

    async def main():
        asyncio.create_task(aio.run(device))
        ...

    asyncio.run(main())

The other tasks stand still while a connection is made (name look-up and the TLS handshake block,
under their deadlines), and the watchdog resets the board when one of them does not give way.
"""

import asyncio

from micropython import const

_LOOK_MS = const(50)  # what has come in is found within that time


async def run(device):
    """step() for ever. Cancelling the task closes the connection."""
    device.begin()
    try:
        while True:
            wait_ms = device.step()
            while True:
                piece = min(wait_ms, _LOOK_MS)
                await asyncio.sleep_ms(piece)
                wait_ms -= piece
                if wait_ms <= 0 or device.readable():
                    break
    finally:
        device.close()
