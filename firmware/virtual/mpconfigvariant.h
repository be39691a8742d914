// SPDX-License-Identifier: MIT
// What MicroPython has on the virtual board: as on a stock ESP32, no more.
//
// Owns the language and module settings (the values of MicroPython's ESP32 port, 1.25).
// Never holds what the unix port sets after reading this file: see mpconfigvirtual.h.

#include <stdint.h>

#define MICROPY_CONFIG_ROM_LEVEL (MICROPY_CONFIG_ROM_LEVEL_EXTRA_FEATURES)

// The name a program sees. It does not claim to be an ESP32's circuit.
#define MICROPY_HW_BOARD_NAME "Outpost virtual board"
#define MICROPY_HW_MCU_NAME "ESP32"
#define MICROPY_PY_SYS_PLATFORM "esp32"

// Scripts on the host find what is frozen; the board sets its own path (board_main.c).
#define MICROPY_PY_SYS_PATH_DEFAULT ".frozen"

// Interpreter.
#define MICROPY_FLOAT_IMPL (MICROPY_FLOAT_IMPL_FLOAT)
#define MICROPY_LONGINT_IMPL (MICROPY_LONGINT_IMPL_MPZ)
#define MICROPY_ENABLE_EMERGENCY_EXCEPTION_BUF (1)
#define MICROPY_PERSISTENT_CODE_LOAD (1)
#define MICROPY_OPT_COMPUTED_GOTO (1)
#define MICROPY_ERROR_REPORTING (MICROPY_ERROR_REPORTING_NORMAL)
#define MICROPY_WARNINGS (1)
#define MICROPY_STREAMS_POSIX_API (1)
#define MICROPY_USE_INTERNAL_PRINTF (0)
#define MICROPY_SCHEDULER_DEPTH (8)
#define MICROPY_STACK_CHECK_MARGIN (1024)
#define MICROPY_ASYNC_KBD_INTR (0)
#define MICROPY_PY_STR_BYTES_CMP_WARN (1)
#define MICROPY_PY_ALL_INPLACE_SPECIAL_METHODS (1)
#define MICROPY_PY_IO_BUFFEREDWRITER (1)
#define MICROPY_PY_BUILTINS_HELP_TEXT board_help_text
extern const char board_help_text[];
#define MICROPY_PY_RANDOM_SEED_INIT_FUNC (mp_random_seed_init())

// The unix port's main program needs these; the board does not show them.
#define MICROPY_USE_READLINE_HISTORY (1)

// time: 2000 epoch, ints, ticks of 30 bits on 64-bit hosts too.
#define MICROPY_PY_TIME (1)
#define MICROPY_PY_TIME_GMTIME_LOCALTIME_MKTIME (1)
#define MICROPY_PY_TIME_TIME_TIME_NS (1)
#define MICROPY_PY_TIME_INCLUDEFILE "board_time.h"
#define MICROPY_PY_TIME_TICKS_PERIOD (0x40000000)

// os.
#define MICROPY_PY_OS_INCLUDEFILE "board_os.h"
#define MICROPY_PY_OS_DUPTERM (1)
#define MICROPY_PY_OS_SYNC (1)
#define MICROPY_PY_OS_UNAME (1)
#define MICROPY_PY_OS_URANDOM (1)

// Crypto: as in the ESP32's build, through mbedtls.
#define MICROPY_PY_HASHLIB_MD5 (1)
#define MICROPY_PY_HASHLIB_SHA1 (1)
#define MICROPY_PY_HASHLIB_SHA256 (1)
#define MICROPY_PY_CRYPTOLIB (1)

// machine: what needs no pins.
#define MICROPY_PY_MACHINE (1)
#define MICROPY_PY_MACHINE_RESET (1)
#define MICROPY_PY_MACHINE_BARE_METAL_FUNCS (1)
#define MICROPY_PY_MACHINE_DISABLE_IRQ_ENABLE_IRQ (1)
#define MICROPY_PY_MACHINE_MEMX (0)
#define MICROPY_PY_MACHINE_SIGNAL (0)
#define MICROPY_PY_MACHINE_PULSE (0)
#define MICROPY_PY_MACHINE_WDT (1)
#define MICROPY_PY_MACHINE_WDT_INCLUDEFILE "board_wdt.h"

// network: a station and an access point that is never used.
#define MICROPY_PY_NETWORK (1)
#define MICROPY_PY_NETWORK_HOSTNAME_DEFAULT "mpy-esp32"
#define MICROPY_PY_NETWORK_INCLUDEFILE "board_network.h"
#define MICROPY_PY_NETWORK_MODULE_GLOBALS_INCLUDEFILE "board_network_globals.h"

#define MICROPY_VFS_ROM (0)
