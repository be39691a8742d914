// SPDX-License-Identifier: MIT
// machine.WDT: real. When it is not fed the process ends with 71, whatever it is doing.
//
// Owns the type's two functions; it is included by extmod/machine_wdt.c. Never stops once
// started, as on the chip.
#include "board.h"

typedef struct _machine_wdt_obj_t {
    mp_obj_base_t base;
} machine_wdt_obj_t;

static machine_wdt_obj_t wdt_default = {{&machine_wdt_type}};

static machine_wdt_obj_t *mp_machine_wdt_make_new_instance(mp_int_t id, mp_int_t timeout_ms) {
    if (id != 0) {
        mp_raise_ValueError(NULL);
    }
    if (timeout_ms <= 0) {
        mp_raise_ValueError(MP_ERROR_TEXT("WDT timeout too short"));
    }
    int error = board_wdt_start(timeout_ms);
    if (error != 0) {
        mp_raise_OSError(error);
    }
    return &wdt_default;
}

static void mp_machine_wdt_feed(machine_wdt_obj_t *self) {
    (void)self;
    board_wdt_feed();
}
