// SPDX-License-Identifier: MIT
// What every board of ours sets before MicroPython's own configuration; mpconfigoutpost.h comes after.
//
// Owns the start-up hook (espboard.c) and what of MicroPython is left out, for room and because a
// device listens nowhere. Never changes what the language is.

void outpost_startup(void);
#define MICROPY_BOARD_STARTUP outpost_startup

// A console at the UART also where the chip has USB.
#define MICROPY_HW_ENABLE_UART_REPL (1)

#define MICROPY_PY_BLUETOOTH (0)
#define MICROPY_PY_ESPNOW (0)
#define MICROPY_HW_ENABLE_MDNS_QUERIES (0)
#define MICROPY_HW_ENABLE_MDNS_RESPONDER (0)
