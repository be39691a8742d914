// SPDX-License-Identifier: MIT
// MicroPython's configuration of the ESP32 port (MP_CONFIGFILE names this file), less WebREPL.
//
// Owns what the port sets without asking the board. Never adds anything.
#ifndef OUTPOST_MPCONFIG_H
#define OUTPOST_MPCONFIG_H

#include <mpconfigport.h>

#undef MICROPY_PY_WEBREPL
#define MICROPY_PY_WEBREPL (0)
#undef MICROPY_PY_WEBSOCKET
#define MICROPY_PY_WEBSOCKET (0)
// WebREPL was what sockets that call back were for.
#undef MICROPY_PY_SOCKET_EVENTS
#define MICROPY_PY_SOCKET_EVENTS (0)
#undef MICROPY_PY_SOCKET_EVENTS_HANDLER
#define MICROPY_PY_SOCKET_EVENTS_HANDLER

#endif
