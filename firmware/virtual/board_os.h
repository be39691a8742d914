// SPDX-License-Identifier: MIT
// The port's part of the os module: urandom. The rest is MicroPython's own.
//
// Owns one function; it is included by extmod/modos.c. Never shows the host's environment.
#include "py/mphal.h"

static mp_obj_t mp_os_urandom(mp_obj_t num) {
    mp_int_t n = mp_obj_get_int(num);
    vstr_t vstr;
    vstr_init_len(&vstr, n);
    mp_hal_get_random(n, vstr.buf);
    return mp_obj_new_bytes_from_vstr(&vstr);
}
static MP_DEFINE_CONST_FUN_OBJ_1(mp_os_urandom_obj, mp_os_urandom);
