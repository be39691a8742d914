// SPDX-License-Identifier: MIT
// The hardware layer that MicroPython sees: the unix port's, with our clock and console.
//
// Owns the names below. Never includes board.h's other parts into MicroPython's sources.
#ifndef OUTPOST_MPHALVIRTUAL_H
#define OUTPOST_MPHALVIRTUAL_H

#include "mphalport.h"
#include "py/mpconfig.h"
#include <stdint.h>

// Ticks count from the start of the board, time from 2000-01-01.
mp_uint_t board_ticks_ms(void);
mp_uint_t board_ticks_us(void);
uint64_t board_time_ns(void);
void board_delay_ms(mp_uint_t ms);
#define mp_hal_ticks_ms board_ticks_ms
#define mp_hal_ticks_us board_ticks_us
#define mp_hal_time_ns board_time_ns
#define mp_hal_delay_ms board_delay_ms
#undef mp_hal_ticks_cpu
#define mp_hal_ticks_cpu() (board_ticks_us() * 160)

#undef mp_hal_stdio_poll
uintptr_t mp_hal_stdio_poll(uintptr_t poll_flags);

// Waiting for an event: sleep until the next tick, or until a signal.
#undef MICROPY_INTERNAL_WFE
void board_wait_tick(int timeout_ms);
#define MICROPY_INTERNAL_WFE(timeout_ms) board_wait_tick((int)(timeout_ms))

#endif
