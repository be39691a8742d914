// SPDX-License-Identifier: MIT
// How a socket waits, as lwIP's port on an ESP32 does: each wait is cut in slices of 100 ms, and a
// time-out of one second takes eleven of them.
//
// Owns the time-out of each socket. Never waits through a Ctrl-C.
#include <errno.h>
#include <poll.h>

#include "py/mperrno.h"
#include "py/runtime.h"

#include "board.h"
#include "board_socket.h"

#define SLICE_MS (100)
#define FOR_EVER (UINT_MAX)

void board_socket_set_timeout(socket_obj_t *self, uint64_t ms) {
    self->retries = ms == UINT64_MAX ? FOR_EVER : (unsigned int)(ms / SLICE_MS);
    self->blocking = ms != 0;
}

bool board_socket_wait_slice(socket_obj_t *self, short events, unsigned int turn) {
    if (!self->blocking || (self->retries != FOR_EVER && turn > self->retries)) {
        return false;
    }
    struct pollfd wait = {.fd = self->fd, .events = events};
    poll(&wait, 1, (SLICE_MS + board.speed - 1) / board.speed);
    mp_handle_pending(true);
    return true;
}

// A time-out of less than a slice waits for one, and is then taken for "would block": so does
// the board's own port.
int board_socket_nothing_came(const socket_obj_t *self) {
    return self->retries == 0 ? MP_EAGAIN : MP_ETIMEDOUT;
}

bool board_socket_again(int host_errno) {
    return host_errno == EAGAIN || host_errno == EINTR;
}

static mp_obj_t socket_settimeout(mp_obj_t self_in, mp_obj_t timeout_in) {
    socket_obj_t *self = MP_OBJ_TO_PTR(self_in);
    if (timeout_in == mp_const_none) {
        board_socket_set_timeout(self, UINT64_MAX);
    } else {
        board_socket_set_timeout(self, (uint64_t)(mp_obj_get_float(timeout_in) * MICROPY_FLOAT_CONST(1000.0)));
    }
    return mp_const_none;
}
MP_DEFINE_CONST_FUN_OBJ_2(board_socket_settimeout_obj, socket_settimeout);

static mp_obj_t socket_setblocking(mp_obj_t self_in, mp_obj_t flag_in) {
    board_socket_set_timeout(MP_OBJ_TO_PTR(self_in), mp_obj_is_true(flag_in) ? UINT64_MAX : 0);
    return mp_const_none;
}
MP_DEFINE_CONST_FUN_OBJ_2(board_socket_setblocking_obj, socket_setblocking);
