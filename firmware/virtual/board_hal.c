// SPDX-License-Identifier: MIT
// Ticks, time and waiting, as MicroPython asks for them.
//
// Owns nothing: it reads the clock of board_core.c. Never sleeps through a Ctrl-C.
#include <time.h>

#include "py/mphal.h"
#include "py/runtime.h"

#include "board.h"

mp_uint_t board_ticks_ms(void) {
    return (mp_uint_t)(board_uptime_us() / 1000);
}

mp_uint_t board_ticks_us(void) {
    return (mp_uint_t)board_uptime_us();
}

uint64_t board_time_ns(void) {
    int64_t us = board_unix_us() - (int64_t)BOARD_EPOCH_2000 * 1000000;
    return us < 0 ? 0 : (uint64_t)us * 1000;
}

static void nap_us(int64_t us) {
    us = (us + board.speed - 1) / board.speed;
    struct timespec ts = {.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};
    nanosleep(&ts, NULL);
}

void board_delay_ms(mp_uint_t ms) {
    uint64_t until = board_uptime_us() + (uint64_t)ms * 1000;
    for (;;) {
        mp_handle_pending(true);
        uint64_t now = board_uptime_us();
        if (now >= until) {
            return;
        }
        // Short enough that a signal between the check and the nap is not missed for long.
        uint64_t left = until - now;
        nap_us((int64_t)(left < 50000 ? left : 50000));
    }
}

void board_wait_tick(int timeout_ms) {
    if (timeout_ms != 0) {
        nap_us(1000);
    }
}
