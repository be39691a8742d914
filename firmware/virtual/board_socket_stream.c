// SPDX-License-Identifier: MIT
// Reading, writing and polling a socket, with the errors and the partial writes of lwIP.
//
// Owns no state. Never goes out while the radio is down.
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include "py/mperrno.h"
#include "py/runtime.h"
#include "shared/netutils/netutils.h"

#include "board.h"
#include "board_socket.h"

static mp_uint_t receive(socket_obj_t *self, void *buf, size_t size, struct sockaddr_in *from, int *errcode) {
    if (self->state == STATE_PEER_CLOSED) {
        return 0;
    }
    for (unsigned int turn = 0;; turn++) {
        socklen_t length = sizeof(*from);
        ssize_t got = recvfrom(self->fd, buf, size, 0, (struct sockaddr *)from, from == NULL ? NULL : &length);
        if (got == 0 && size > 0 && self->type == SOCK_STREAM) {
            self->state = STATE_PEER_CLOSED;
        }
        if (got >= 0) {
            return (mp_uint_t)got;
        }
        if (!board_socket_again(errno)) {
            *errcode = board_errno(errno);
            return MP_STREAM_ERROR;
        }
        if (!board_socket_wait_slice(self, POLLIN, turn)) {
            *errcode = board_socket_nothing_came(self);
            return MP_STREAM_ERROR;
        }
    }
}

static mp_obj_t receive_bytes(mp_obj_t self_in, mp_obj_t length_in, struct sockaddr_in *from) {
    vstr_t vstr;
    vstr_init_len(&vstr, mp_obj_get_int(length_in));
    int errcode;
    mp_uint_t got = receive(MP_OBJ_TO_PTR(self_in), vstr.buf, vstr.len, from, &errcode);
    if (got == MP_STREAM_ERROR) {
        mp_raise_OSError(errcode);
    }
    vstr.len = got;
    return mp_obj_new_bytes_from_vstr(&vstr);
}

static mp_obj_t socket_recv(mp_obj_t self_in, mp_obj_t length_in) {
    return receive_bytes(self_in, length_in, NULL);
}
MP_DEFINE_CONST_FUN_OBJ_2(board_socket_recv_obj, socket_recv);

static mp_obj_t socket_recvfrom(mp_obj_t self_in, mp_obj_t length_in) {
    struct sockaddr_in from = {0};
    mp_obj_t items[2];
    items[0] = receive_bytes(self_in, length_in, &from);
    items[1] = board_socket_tuple_of(&from);
    return mp_obj_new_tuple(2, items);
}
MP_DEFINE_CONST_FUN_OBJ_2(board_socket_recvfrom_obj, socket_recvfrom);

// One call of the host's send. -1: try again later.
static ssize_t send_some(socket_obj_t *self, const void *buf, size_t size, int *errcode) {
    if (self->state == STATE_NEW) {
        *errcode = self->fd < 0 ? MP_EBADF : MP_ENOTCONN;
        return -2;
    }
    ssize_t sent = send(self->fd, buf, size, MSG_NOSIGNAL);
    if (sent >= 0) {
        return sent;
    }
    if (board_socket_again(errno)) {
        return -1;
    }
    // A connection still being made: lwIP says so, the host says "not connected".
    *errcode = board_errno(errno);
    return -2;
}

static mp_uint_t stream_write(mp_obj_t self_in, const void *buf, mp_uint_t size, int *errcode) {
    socket_obj_t *self = MP_OBJ_TO_PTR(self_in);
    if (size == 0) {
        return 0;
    }
    for (unsigned int turn = 0;; turn++) {
        ssize_t sent = send_some(self, buf, size, errcode);
        if (sent > 0) {
            return (mp_uint_t)sent;
        }
        if (sent == -2) {
            return MP_STREAM_ERROR;
        }
        if (!board_socket_wait_slice(self, POLLOUT, turn)) {
            *errcode = board_socket_nothing_came(self);
            return MP_STREAM_ERROR;
        }
    }
}

// As much as goes before the time is up; nothing at all is an error.
static size_t send_buffer(socket_obj_t *self, const mp_buffer_info_t *data) {
    size_t done = 0;
    for (unsigned int turn = 0; done < data->len; turn++) {
        int errcode;
        ssize_t sent = send_some(self, (const char *)data->buf + done, data->len - done, &errcode);
        if (sent == -2) {
            mp_raise_OSError(errcode);
        }
        if (sent > 0) {
            done += (size_t)sent;
        }
        if (done < data->len && !board_socket_wait_slice(self, POLLOUT, turn)) {
            break;
        }
    }
    if (done == 0 && data->len > 0) {
        mp_raise_OSError(board_socket_nothing_came(self));
    }
    return done;
}

static mp_obj_t socket_send(mp_obj_t self_in, mp_obj_t data_in) {
    mp_buffer_info_t data;
    mp_get_buffer_raise(data_in, &data, MP_BUFFER_READ);
    return mp_obj_new_int_from_uint(send_buffer(MP_OBJ_TO_PTR(self_in), &data));
}
MP_DEFINE_CONST_FUN_OBJ_2(board_socket_send_obj, socket_send);

static mp_obj_t socket_sendall(mp_obj_t self_in, mp_obj_t data_in) {
    mp_buffer_info_t data;
    mp_get_buffer_raise(data_in, &data, MP_BUFFER_READ);
    if (send_buffer(MP_OBJ_TO_PTR(self_in), &data) < data.len) {
        mp_raise_OSError(MP_ETIMEDOUT);
    }
    return mp_const_none;
}
MP_DEFINE_CONST_FUN_OBJ_2(board_socket_sendall_obj, socket_sendall);

static mp_obj_t socket_sendto(mp_obj_t self_in, mp_obj_t data_in, mp_obj_t address_in) {
    socket_obj_t *self = MP_OBJ_TO_PTR(self_in);
    mp_buffer_info_t data;
    mp_get_buffer_raise(data_in, &data, MP_BUFFER_READ);
    // As on the board an address here is a number, not a name.
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_port = htons((uint16_t)netutils_parse_inet_addr(address_in, (uint8_t *)&to.sin_addr, NETUTILS_BIG));
    board_socket_need_radio();
    for (unsigned int turn = 0;; turn++) {
        ssize_t sent = sendto(self->fd, data.buf, data.len, MSG_NOSIGNAL, (struct sockaddr *)&to, sizeof(to));
        if (sent >= 0) {
            return mp_obj_new_int_from_uint((mp_uint_t)sent);
        }
        if (!board_socket_again(errno)) {
            mp_raise_OSError(board_errno(errno));
        }
        if (!board_socket_wait_slice(self, POLLOUT, turn)) {
            mp_raise_OSError(MP_ETIMEDOUT);
        }
    }
}
MP_DEFINE_CONST_FUN_OBJ_3(board_socket_sendto_obj, socket_sendto);

static mp_uint_t stream_read(mp_obj_t self_in, void *buf, mp_uint_t size, int *errcode) {
    return receive(MP_OBJ_TO_PTR(self_in), buf, size, NULL, errcode);
}

static mp_uint_t stream_poll(const socket_obj_t *self, uintptr_t asked) {
    if (self->fd < 0) {
        return MP_STREAM_POLL_NVAL;
    }
    struct pollfd state = {.fd = self->fd, .events = POLLIN | POLLOUT};
    poll(&state, 1, 0);
    mp_uint_t ready = 0;
    bool failed = (state.revents & POLLERR) != 0;
    // select() counts an error as readable and writable; the other side's end as readable.
    if (failed || (state.revents & (POLLIN | POLLHUP))) {
        ready |= asked & MP_STREAM_POLL_RD;
    }
    if (failed || (state.revents & POLLOUT)) {
        ready |= asked & MP_STREAM_POLL_WR;
    }
    if (failed) {
        ready |= asked & MP_STREAM_POLL_HUP;
    }
    if (self->state == STATE_NEW) {
        // Not yet used: writable and hung up, whatever the host thinks of it.
        ready = (asked & MP_STREAM_POLL_WR) | MP_STREAM_POLL_HUP;
    }
    return ready;
}

static mp_uint_t stream_ioctl(mp_obj_t self_in, mp_uint_t request, uintptr_t arg, int *errcode) {
    socket_obj_t *self = MP_OBJ_TO_PTR(self_in);
    if (request == MP_STREAM_POLL) {
        return stream_poll(self, arg);
    }
    if (request == MP_STREAM_CLOSE) {
        board_socket_close(self);
        return 0;
    }
    *errcode = MP_EINVAL;
    return MP_STREAM_ERROR;
}

const mp_stream_p_t board_socket_stream = {
    .read = stream_read,
    .write = stream_write,
    .ioctl = stream_ioctl,
};
