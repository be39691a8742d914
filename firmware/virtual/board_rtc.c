// SPDX-License-Identifier: MIT
// machine.RTC: the clock, and 2048 bytes that survive everything but the loss of power.
//
// Owns the Python face of board.rtc_memory and of the board's clock. Never on the GC heap.
#include <string.h>

#include "py/runtime.h"
#include "shared/timeutils/timeutils.h"

#include "board.h"

typedef struct {
    mp_obj_base_t base;
} rtc_obj_t;

extern const mp_obj_type_t machine_rtc_type;
static const rtc_obj_t rtc_obj = {{&machine_rtc_type}};

static mp_obj_t rtc_make_new(const mp_obj_type_t *type, size_t n_args, size_t n_kw, const mp_obj_t *args) {
    (void)type;
    (void)args;
    mp_arg_check_num(n_args, n_kw, 0, 0, false);
    return MP_OBJ_FROM_PTR(&rtc_obj);
}

static void rtc_set(mp_obj_t when, size_t hour_at) {
    mp_obj_t *items;
    mp_obj_get_array_fixed_n(when, 8, &items);
    int64_t seconds = (int64_t)timeutils_seconds_since_epoch(
        mp_obj_get_int(items[0]), mp_obj_get_int(items[1]), mp_obj_get_int(items[2]),
        mp_obj_get_int(items[hour_at]), mp_obj_get_int(items[hour_at + 1]),
        mp_obj_get_int(items[hour_at + 2]));
    // Any number may stand in the tuple: what comes of a wild one is wild, but defined.
    uint64_t us = (uint64_t)(seconds + BOARD_EPOCH_2000) * 1000000 + (uint64_t)mp_obj_get_int(items[7]);
    board_clock_set_us((int64_t)us);
}

static mp_obj_t rtc_datetime(size_t n_args, const mp_obj_t *args) {
    if (n_args == 2) {
        rtc_set(args[1], 4);
        return mp_const_none;
    }
    int64_t us = board_unix_us();
    timeutils_struct_time_t tm;
    timeutils_seconds_since_epoch_to_struct_time((mp_uint_t)(us / 1000000 - BOARD_EPOCH_2000), &tm);
    mp_obj_t items[8] = {
        mp_obj_new_int(tm.tm_year),
        mp_obj_new_int(tm.tm_mon),
        mp_obj_new_int(tm.tm_mday),
        mp_obj_new_int(tm.tm_wday),
        mp_obj_new_int(tm.tm_hour),
        mp_obj_new_int(tm.tm_min),
        mp_obj_new_int(tm.tm_sec),
        mp_obj_new_int((mp_int_t)(us % 1000000)),
    };
    return mp_obj_new_tuple(8, items);
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(rtc_datetime_obj, 1, 2, rtc_datetime);

static mp_obj_t rtc_init(mp_obj_t self_in, mp_obj_t when) {
    (void)self_in;
    rtc_set(when, 3);
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_2(rtc_init_obj, rtc_init);

static mp_obj_t rtc_memory(size_t n_args, const mp_obj_t *args) {
    if (n_args == 1) {
        return mp_obj_new_bytes(board.rtc_memory, board.rtc_length);
    }
    mp_buffer_info_t data;
    mp_get_buffer_raise(args[1], &data, MP_BUFFER_READ);
    if (data.len > BOARD_RTC_MEMORY) {
        mp_raise_ValueError(MP_ERROR_TEXT("buffer too long"));
    }
    memcpy(board.rtc_memory, data.buf, data.len);
    board.rtc_length = (uint16_t)data.len;
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(rtc_memory_obj, 1, 2, rtc_memory);

static const mp_rom_map_elem_t rtc_locals_table[] = {
    { MP_ROM_QSTR(MP_QSTR_init), MP_ROM_PTR(&rtc_init_obj) },
    { MP_ROM_QSTR(MP_QSTR_datetime), MP_ROM_PTR(&rtc_datetime_obj) },
    { MP_ROM_QSTR(MP_QSTR_memory), MP_ROM_PTR(&rtc_memory_obj) },
};
static MP_DEFINE_CONST_DICT(rtc_locals, rtc_locals_table);

MP_DEFINE_CONST_OBJ_TYPE(
    machine_rtc_type,
    MP_QSTR_RTC,
    MP_TYPE_FLAG_NONE,
    make_new, rtc_make_new,
    locals_dict, &rtc_locals
    );
