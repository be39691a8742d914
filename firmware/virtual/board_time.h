// SPDX-License-Identifier: MIT
// The port's part of the time module: seconds since 2000 as ints, UTC.
//
// Owns two functions; it is included by extmod/modtime.c. Never a float: on the board a
// single-precision one could not hold a date.
#include "shared/timeutils/timeutils.h"

#include "board.h"

static mp_obj_t mp_time_time_get(void) {
    return mp_obj_new_int_from_ll(board_unix_us() / 1000000 - BOARD_EPOCH_2000);
}

static mp_obj_t mp_time_localtime_get(void) {
    timeutils_struct_time_t tm;
    int64_t now = board_unix_us() / 1000000 - BOARD_EPOCH_2000;
    timeutils_seconds_since_epoch_to_struct_time((mp_uint_t)now, &tm);
    mp_obj_t items[8] = {
        mp_obj_new_int(tm.tm_year),
        mp_obj_new_int(tm.tm_mon),
        mp_obj_new_int(tm.tm_mday),
        mp_obj_new_int(tm.tm_hour),
        mp_obj_new_int(tm.tm_min),
        mp_obj_new_int(tm.tm_sec),
        mp_obj_new_int(tm.tm_wday),
        mp_obj_new_int(tm.tm_yday),
    };
    return mp_obj_new_tuple(8, items);
}
