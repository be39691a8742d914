// SPDX-License-Identifier: MIT
// The port's part of the machine module: resets, sleep, identity, RTC. No pins.
//
// Owns the names that MICROPY_PY_MACHINE_EXTRA_GLOBALS adds; it is included by
// extmod/modmachine.c. Never returns from a reset: the process ends and the runner starts it.
#include "py/mphal.h"

#include "board.h"

extern const mp_obj_type_t machine_rtc_type;

static void mp_machine_idle(void) {
    board_wait_tick(1);
}

__attribute__((noreturn)) static void mp_machine_reset(void) {
    board_exit(BOARD_EXIT_RESET, 0);
}

static mp_int_t mp_machine_reset_cause(void) {
    return board.reset_cause;
}

static mp_obj_t mp_machine_unique_id(void) {
    return mp_obj_new_bytes(board.mac, sizeof(board.mac));
}

static uint32_t machine_frequency = 160000000;

static mp_obj_t mp_machine_get_freq(void) {
    return mp_obj_new_int_from_uint(machine_frequency);
}

static void mp_machine_set_freq(size_t n_args, const mp_obj_t *args) {
    (void)n_args;
    mp_int_t mhz = mp_obj_get_int(args[0]) / 1000000;
    if (mhz != 20 && mhz != 40 && mhz != 80 && mhz != 160 && mhz != 240) {
        mp_raise_ValueError(MP_ERROR_TEXT("frequency must be 20MHz, 40MHz, 80Mhz, 160MHz or 240MHz"));
    }
    machine_frequency = (uint32_t)mhz * 1000000;
}

static void mp_machine_lightsleep(size_t n_args, const mp_obj_t *args) {
    mp_int_t ms = n_args > 0 ? mp_obj_get_int(args[0]) : -1;
    nlr_buf_t nlr;
    board_wdt_pause(true);
    if (nlr_push(&nlr) == 0) {
        do {
            board_delay_ms(ms < 0 ? 1000 : (mp_uint_t)ms);
        } while (ms < 0);
        nlr_pop();
        board_wdt_pause(false);
        board.wake_reason = 4;
    } else {
        board_wdt_pause(false);
        nlr_raise(MP_OBJ_FROM_PTR(nlr.ret_val));
    }
}

__attribute__((noreturn)) static void mp_machine_deepsleep(size_t n_args, const mp_obj_t *args) {
    board_exit(BOARD_EXIT_SLEEP, n_args > 0 ? (int64_t)mp_obj_get_int(args[0]) : -1);
}

static mp_obj_t machine_wake_reason(void) {
    return MP_OBJ_NEW_SMALL_INT(board.wake_reason);
}
static MP_DEFINE_CONST_FUN_OBJ_0(machine_wake_reason_obj, machine_wake_reason);

#define MICROPY_PY_MACHINE_EXTRA_GLOBALS \
    { MP_ROM_QSTR(MP_QSTR_sleep), MP_ROM_PTR(&machine_lightsleep_obj) }, \
    { MP_ROM_QSTR(MP_QSTR_RTC), MP_ROM_PTR(&machine_rtc_type) }, \
    { MP_ROM_QSTR(MP_QSTR_SLEEP), MP_ROM_INT(2) }, \
    { MP_ROM_QSTR(MP_QSTR_DEEPSLEEP), MP_ROM_INT(4) }, \
    { MP_ROM_QSTR(MP_QSTR_PWRON_RESET), MP_ROM_INT(BOARD_CAUSE_POWERON) }, \
    { MP_ROM_QSTR(MP_QSTR_HARD_RESET), MP_ROM_INT(BOARD_CAUSE_HARD) }, \
    { MP_ROM_QSTR(MP_QSTR_WDT_RESET), MP_ROM_INT(BOARD_CAUSE_WDT) }, \
    { MP_ROM_QSTR(MP_QSTR_DEEPSLEEP_RESET), MP_ROM_INT(BOARD_CAUSE_DEEPSLEEP) }, \
    { MP_ROM_QSTR(MP_QSTR_SOFT_RESET), MP_ROM_INT(BOARD_CAUSE_SOFT) }, \
    { MP_ROM_QSTR(MP_QSTR_wake_reason), MP_ROM_PTR(&machine_wake_reason_obj) }, \
    { MP_ROM_QSTR(MP_QSTR_PIN_WAKE), MP_ROM_INT(2) }, \
    { MP_ROM_QSTR(MP_QSTR_EXT0_WAKE), MP_ROM_INT(2) }, \
    { MP_ROM_QSTR(MP_QSTR_EXT1_WAKE), MP_ROM_INT(3) }, \
    { MP_ROM_QSTR(MP_QSTR_TIMER_WAKE), MP_ROM_INT(4) }, \
    { MP_ROM_QSTR(MP_QSTR_TOUCHPAD_WAKE), MP_ROM_INT(5) }, \
    { MP_ROM_QSTR(MP_QSTR_ULP_WAKE), MP_ROM_INT(6) },
