// SPDX-License-Identifier: MIT
// The socket module with the manners of lwIP on an ESP32, over the host's sockets.
//
// Owns the sockets and their time-outs: each wait is cut in slices of 100 ms, and a time-out of
// one second takes eleven of them, as on the board. Error numbers are the board's.
// Never goes out while the radio is down, never waits through a Ctrl-C, never asks the host's
// name service for a name that --hosts gives.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "py/gc.h"
#include "py/mperrno.h"
#include "py/mphal.h"
#include "py/objstr.h"
#include "py/runtime.h"
#include "py/stream.h"
#include "shared/netutils/netutils.h"

#include "board.h"

#define SLICE_MS (100)
#define MAX_SOCKETS (10)
#define FOR_EVER (UINT_MAX)
#define SEND_BUFFER (5760)      // ESP-IDF's: larger writes are partial, or wait

// lwIP's numbers, where they are not the host's.
#define LWIP_SOL_SOCKET (0xfff)
#define LWIP_SO_REUSEADDR (0x0004)
#define LWIP_SO_BROADCAST (0x0020)
#define LWIP_SO_BINDTODEVICE (0x100b)
#define LWIP_IP_ADD_MEMBERSHIP (3)
#define LWIP_TCP_NODELAY (1)
#define NAME_NOT_FOUND (-202)
#define ANSWER_IS_NOBODY (-2)

enum { STATE_NEW, STATE_CONNECTED, STATE_PEER_CLOSED };

// As large as the ESP32's, so that a socket costs the GC heap what it costs there.
typedef struct {
    mp_obj_base_t base;
    int fd;
    uint8_t domain;
    uint8_t type;
    uint8_t proto;
    uint8_t state;
    unsigned int retries;
    bool blocking;
    void *unused;
} socket_obj_t;

static int open_sockets;

// ---------------------------------------------------------------- waiting

// One slice, or none where the socket does not block. True: go and try again.
static bool wait_slice(socket_obj_t *self, short events, unsigned int turn) {
    if (!self->blocking || (self->retries != FOR_EVER && turn > self->retries)) {
        return false;
    }
    struct pollfd wait = {.fd = self->fd, .events = events};
    poll(&wait, 1, SLICE_MS);
    mp_handle_pending(true);
    return true;
}

// A time-out of less than a slice waits for one, and is then taken for "would block": so does
// the board's own port.
static int nothing_came(const socket_obj_t *self) {
    return self->retries == 0 ? MP_EAGAIN : MP_ETIMEDOUT;
}

static bool again(int host_errno) {
    return host_errno == EAGAIN || host_errno == EINTR;
}

// ---------------------------------------------------------------- names

static bool from_hosts_option(const char *name, struct in_addr *ip) {
    size_t length = strlen(name);
    for (const char *at = board.hosts; at != NULL && *at != 0;) {
        const char *end = strchrnul(at, ',');
        if (strncasecmp(at, name, length) == 0 && at[length] == '=') {
            char text[INET_ADDRSTRLEN + 1];
            size_t size = (size_t)(end - at) - length - 1;
            if (size < sizeof(text)) {
                memcpy(text, at + length + 1, size);
                text[size] = 0;
                return inet_aton(text, ip) != 0;
            }
        }
        at = *end == ',' ? end + 1 : end;
    }
    return false;
}

// Blocking and without a time-out, as lwIP's is.
static struct in_addr resolve(const char *name) {
    struct in_addr ip = {0};
    if (name[0] == 0 || inet_aton(name, &ip) != 0) {
        return ip;
    }
    if (board.is_board && !board_wifi_up()) {
        mp_raise_OSError(NAME_NOT_FOUND);
    }
    if (from_hosts_option(name, &ip)) {
        return ip;
    }
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    if (getaddrinfo(name, NULL, &hints, &found) != 0 || found == NULL) {
        mp_handle_pending(true);
        mp_raise_OSError(NAME_NOT_FOUND);
    }
    ip = ((struct sockaddr_in *)(void *)found->ai_addr)->sin_addr;
    freeaddrinfo(found);
    if (ip.s_addr == 0) {
        mp_raise_OSError(ANSWER_IS_NOBODY);
    }
    return ip;
}

static uint16_t port_of(mp_obj_t port) {
    if (mp_obj_is_integer(port)) {
        return (uint16_t)mp_obj_get_int(port);
    }
    return (uint16_t)strtoul(mp_obj_str_get_str(port), NULL, 10);
}

static struct sockaddr_in address_of(mp_obj_t tuple) {
    mp_obj_t *items;
    mp_obj_get_array_fixed_n(tuple, 2, &items);
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr = resolve(mp_obj_str_get_str(items[0]));
    address.sin_port = htons(port_of(items[1]));
    return address;
}

static mp_obj_t tuple_of(const struct sockaddr_in *address) {
    return netutils_format_inet_addr((uint8_t *)&address->sin_addr, ntohs(address->sin_port), NETUTILS_BIG);
}

static void need_radio(void) {
    if (board.is_board && !board_wifi_up()) {
        mp_raise_OSError(MP_EHOSTUNREACH);
    }
}

// ---------------------------------------------------------------- life of a socket

static void set_timeout(socket_obj_t *self, uint64_t ms) {
    self->retries = ms == UINT64_MAX ? FOR_EVER : (unsigned int)(ms / SLICE_MS);
    self->blocking = ms != 0;
}

static socket_obj_t *new_object(const mp_obj_type_t *type, int domain, int kind, int proto) {
    socket_obj_t *self = mp_obj_malloc_with_finaliser(socket_obj_t, type);
    self->fd = -1;
    self->domain = (uint8_t)domain;
    self->type = (uint8_t)kind;
    self->proto = (uint8_t)proto;
    self->state = kind == SOCK_STREAM ? STATE_NEW : STATE_CONNECTED;
    set_timeout(self, UINT64_MAX);
    return self;
}

static void keep(socket_obj_t *self, int fd) {
    int size = SEND_BUFFER;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    self->fd = fd;
    open_sockets++;
}

static mp_obj_t socket_make_new(const mp_obj_type_t *type, size_t n_args, size_t n_kw, const mp_obj_t *args) {
    mp_arg_check_num(n_args, n_kw, 0, 3, false);
    int domain = n_args > 0 ? (int)mp_obj_get_int(args[0]) : AF_INET;
    int kind = n_args > 1 ? (int)mp_obj_get_int(args[1]) : SOCK_STREAM;
    int proto = n_args > 2 ? (int)mp_obj_get_int(args[2]) : 0;
    socket_obj_t *self = new_object(type, domain, kind, proto);
    if (open_sockets >= MAX_SOCKETS) {
        gc_collect();           // one that nobody holds any more may be let go
    }
    if (open_sockets >= MAX_SOCKETS) {
        mp_raise_OSError(MP_ENFILE);
    }
    int fd = socket(domain, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, proto);
    if (fd < 0) {
        mp_raise_OSError(board_errno(errno));
    }
    keep(self, fd);
    return MP_OBJ_FROM_PTR(self);
}

static mp_obj_t socket_bind(mp_obj_t self_in, mp_obj_t address_in) {
    socket_obj_t *self = MP_OBJ_TO_PTR(self_in);
    struct sockaddr_in address = address_of(address_in);
    self->state = STATE_CONNECTED;
    if (bind(self->fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        mp_raise_OSError(board_errno(errno));
    }
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_2(socket_bind_obj, socket_bind);

static mp_obj_t socket_listen(size_t n_args, const mp_obj_t *args) {
    socket_obj_t *self = MP_OBJ_TO_PTR(args[0]);
    mp_int_t backlog = n_args > 1 ? mp_obj_get_int(args[1]) : 2;
    self->state = STATE_CONNECTED;
    if (listen(self->fd, backlog < 0 ? 0 : (int)backlog) != 0) {
        mp_raise_OSError(board_errno(errno));
    }
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(socket_listen_obj, 1, 2, socket_listen);

static mp_obj_t socket_accept(mp_obj_t self_in) {
    socket_obj_t *self = MP_OBJ_TO_PTR(self_in);
    for (unsigned int turn = 0;; turn++) {
        struct sockaddr_in from;
        socklen_t length = sizeof(from);
        int fd = accept4(self->fd, (struct sockaddr *)&from, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            socket_obj_t *other = new_object(self->base.type, self->domain, self->type, self->proto);
            other->state = STATE_CONNECTED;
            keep(other, fd);
            mp_obj_t items[2] = {MP_OBJ_FROM_PTR(other), tuple_of(&from)};
            return mp_obj_new_tuple(2, items);
        }
        if (!again(errno)) {
            mp_raise_OSError(board_errno(errno));
        }
        if (!wait_slice(self, POLLIN, turn)) {
            mp_raise_OSError(nothing_came(self));
        }
    }
}
static MP_DEFINE_CONST_FUN_OBJ_1(socket_accept_obj, socket_accept);

// What a finished attempt came to. lwIP says "reset" where the host says "refused".
static int connect_errno(int host_errno) {
    return host_errno == ECONNREFUSED ? MP_ECONNRESET : board_errno(host_errno);
}

static mp_obj_t socket_connect(mp_obj_t self_in, mp_obj_t address_in) {
    socket_obj_t *self = MP_OBJ_TO_PTR(self_in);
    struct sockaddr_in address = address_of(address_in);
    need_radio();
    self->state = STATE_CONNECTED;
    if (connect(self->fd, (struct sockaddr *)&address, sizeof(address)) == 0) {
        // Loopback is quicker than any radio: without blocking, lwIP is never done at once.
        if (!self->blocking && self->type == SOCK_STREAM) {
            mp_raise_OSError(MP_EINPROGRESS);
        }
        return mp_const_none;
    }
    if (errno != EINPROGRESS && errno != EINTR) {
        mp_raise_OSError(connect_errno(errno));
    }
    if (!self->blocking) {
        mp_raise_OSError(MP_EINPROGRESS);
    }
    for (unsigned int turn = 0;; turn++) {
        struct pollfd wait = {.fd = self->fd, .events = POLLOUT};
        if (poll(&wait, 1, 0) > 0) {
            int error = 0;
            socklen_t length = sizeof(error);
            getsockopt(self->fd, SOL_SOCKET, SO_ERROR, &error, &length);
            if (error != 0) {
                mp_raise_OSError(connect_errno(error));
            }
            return mp_const_none;
        }
        if (!wait_slice(self, POLLOUT, turn)) {
            mp_raise_OSError(MP_ETIMEDOUT);
        }
    }
}
static MP_DEFINE_CONST_FUN_OBJ_2(socket_connect_obj, socket_connect);

// ---------------------------------------------------------------- options

static void set_option(socket_obj_t *self, int level, int option, const void *value, socklen_t length) {
    if (setsockopt(self->fd, level, option, value, length) != 0) {
        mp_raise_OSError(board_errno(errno));
    }
}

static mp_obj_t socket_setsockopt(size_t n_args, const mp_obj_t *args) {
    (void)n_args;
    socket_obj_t *self = MP_OBJ_TO_PTR(args[0]);
    switch (mp_obj_get_int(args[2])) {      // lwIP's port looks at the option alone
        case LWIP_SO_REUSEADDR: {
            int value = (int)mp_obj_get_int(args[3]);
            set_option(self, SOL_SOCKET, SO_REUSEADDR, &value, sizeof(value));
            break;
        }
        case LWIP_SO_BROADCAST: {
            int value = (int)mp_obj_get_int(args[3]);
            set_option(self, SOL_SOCKET, SO_BROADCAST, &value, sizeof(value));
            break;
        }
        case LWIP_SO_BINDTODEVICE:
            (void)mp_obj_str_get_str(args[3]);      // there is one interface
            break;
        case LWIP_TCP_NODELAY: {
            int value = (int)mp_obj_get_int(args[3]);
            set_option(self, IPPROTO_TCP, TCP_NODELAY, &value, sizeof(value));
            break;
        }
        case LWIP_IP_ADD_MEMBERSHIP: {
            mp_buffer_info_t data;
            mp_get_buffer_raise(args[3], &data, MP_BUFFER_READ);
            if (data.len != 8) {
                mp_raise_ValueError(NULL);
            }
            set_option(self, IPPROTO_IP, IP_ADD_MEMBERSHIP, data.buf, (socklen_t)data.len);
            break;
        }
        default:
            mp_printf(&mp_plat_print, "Warning: lwip.setsockopt() option not implemented\n");
    }
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(socket_setsockopt_obj, 4, 4, socket_setsockopt);

static mp_obj_t socket_settimeout(mp_obj_t self_in, mp_obj_t timeout_in) {
    socket_obj_t *self = MP_OBJ_TO_PTR(self_in);
    if (timeout_in == mp_const_none) {
        set_timeout(self, UINT64_MAX);
    } else {
        set_timeout(self, (uint64_t)(mp_obj_get_float(timeout_in) * MICROPY_FLOAT_CONST(1000.0)));
    }
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_2(socket_settimeout_obj, socket_settimeout);

static mp_obj_t socket_setblocking(mp_obj_t self_in, mp_obj_t flag_in) {
    set_timeout(MP_OBJ_TO_PTR(self_in), mp_obj_is_true(flag_in) ? UINT64_MAX : 0);
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_2(socket_setblocking_obj, socket_setblocking);

// ---------------------------------------------------------------- reading and writing

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
        if (!again(errno)) {
            *errcode = board_errno(errno);
            return MP_STREAM_ERROR;
        }
        if (!wait_slice(self, POLLIN, turn)) {
            *errcode = nothing_came(self);
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
static MP_DEFINE_CONST_FUN_OBJ_2(socket_recv_obj, socket_recv);

static mp_obj_t socket_recvfrom(mp_obj_t self_in, mp_obj_t length_in) {
    struct sockaddr_in from = {0};
    mp_obj_t items[2];
    items[0] = receive_bytes(self_in, length_in, &from);
    items[1] = tuple_of(&from);
    return mp_obj_new_tuple(2, items);
}
static MP_DEFINE_CONST_FUN_OBJ_2(socket_recvfrom_obj, socket_recvfrom);

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
    if (again(errno)) {
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
        if (!wait_slice(self, POLLOUT, turn)) {
            *errcode = nothing_came(self);
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
        if (done < data->len && !wait_slice(self, POLLOUT, turn)) {
            break;
        }
    }
    if (done == 0 && data->len > 0) {
        mp_raise_OSError(nothing_came(self));
    }
    return done;
}

static mp_obj_t socket_send(mp_obj_t self_in, mp_obj_t data_in) {
    mp_buffer_info_t data;
    mp_get_buffer_raise(data_in, &data, MP_BUFFER_READ);
    return mp_obj_new_int_from_uint(send_buffer(MP_OBJ_TO_PTR(self_in), &data));
}
static MP_DEFINE_CONST_FUN_OBJ_2(socket_send_obj, socket_send);

static mp_obj_t socket_sendall(mp_obj_t self_in, mp_obj_t data_in) {
    mp_buffer_info_t data;
    mp_get_buffer_raise(data_in, &data, MP_BUFFER_READ);
    if (send_buffer(MP_OBJ_TO_PTR(self_in), &data) < data.len) {
        mp_raise_OSError(MP_ETIMEDOUT);
    }
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_2(socket_sendall_obj, socket_sendall);

static mp_obj_t socket_sendto(mp_obj_t self_in, mp_obj_t data_in, mp_obj_t address_in) {
    socket_obj_t *self = MP_OBJ_TO_PTR(self_in);
    mp_buffer_info_t data;
    mp_get_buffer_raise(data_in, &data, MP_BUFFER_READ);
    // As on the board an address here is a number, not a name.
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_port = htons((uint16_t)netutils_parse_inet_addr(address_in, (uint8_t *)&to.sin_addr, NETUTILS_BIG));
    need_radio();
    for (unsigned int turn = 0;; turn++) {
        ssize_t sent = sendto(self->fd, data.buf, data.len, MSG_NOSIGNAL, (struct sockaddr *)&to, sizeof(to));
        if (sent >= 0) {
            return mp_obj_new_int_from_uint((mp_uint_t)sent);
        }
        if (!again(errno)) {
            mp_raise_OSError(board_errno(errno));
        }
        if (!wait_slice(self, POLLOUT, turn)) {
            mp_raise_OSError(MP_ETIMEDOUT);
        }
    }
}
static MP_DEFINE_CONST_FUN_OBJ_3(socket_sendto_obj, socket_sendto);

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
        if (self->fd >= 0) {
            close(self->fd);
            self->fd = -1;
            open_sockets--;
        }
        return 0;
    }
    *errcode = MP_EINVAL;
    return MP_STREAM_ERROR;
}

static mp_obj_t socket_fileno(mp_obj_t self_in) {
    socket_obj_t *self = MP_OBJ_TO_PTR(self_in);
    return mp_obj_new_int(self->fd);
}
static MP_DEFINE_CONST_FUN_OBJ_1(socket_fileno_obj, socket_fileno);

static mp_obj_t socket_makefile(size_t n_args, const mp_obj_t *args) {
    (void)n_args;
    return args[0];
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(socket_makefile_obj, 1, 3, socket_makefile);

static const mp_rom_map_elem_t socket_locals_table[] = {
    { MP_ROM_QSTR(MP_QSTR___del__), MP_ROM_PTR(&mp_stream_close_obj) },
    { MP_ROM_QSTR(MP_QSTR_close), MP_ROM_PTR(&mp_stream_close_obj) },
    { MP_ROM_QSTR(MP_QSTR_bind), MP_ROM_PTR(&socket_bind_obj) },
    { MP_ROM_QSTR(MP_QSTR_listen), MP_ROM_PTR(&socket_listen_obj) },
    { MP_ROM_QSTR(MP_QSTR_accept), MP_ROM_PTR(&socket_accept_obj) },
    { MP_ROM_QSTR(MP_QSTR_connect), MP_ROM_PTR(&socket_connect_obj) },
    { MP_ROM_QSTR(MP_QSTR_send), MP_ROM_PTR(&socket_send_obj) },
    { MP_ROM_QSTR(MP_QSTR_sendall), MP_ROM_PTR(&socket_sendall_obj) },
    { MP_ROM_QSTR(MP_QSTR_sendto), MP_ROM_PTR(&socket_sendto_obj) },
    { MP_ROM_QSTR(MP_QSTR_recv), MP_ROM_PTR(&socket_recv_obj) },
    { MP_ROM_QSTR(MP_QSTR_recvfrom), MP_ROM_PTR(&socket_recvfrom_obj) },
    { MP_ROM_QSTR(MP_QSTR_setsockopt), MP_ROM_PTR(&socket_setsockopt_obj) },
    { MP_ROM_QSTR(MP_QSTR_settimeout), MP_ROM_PTR(&socket_settimeout_obj) },
    { MP_ROM_QSTR(MP_QSTR_setblocking), MP_ROM_PTR(&socket_setblocking_obj) },
    { MP_ROM_QSTR(MP_QSTR_makefile), MP_ROM_PTR(&socket_makefile_obj) },
    { MP_ROM_QSTR(MP_QSTR_fileno), MP_ROM_PTR(&socket_fileno_obj) },
    { MP_ROM_QSTR(MP_QSTR_read), MP_ROM_PTR(&mp_stream_read_obj) },
    { MP_ROM_QSTR(MP_QSTR_readinto), MP_ROM_PTR(&mp_stream_readinto_obj) },
    { MP_ROM_QSTR(MP_QSTR_readline), MP_ROM_PTR(&mp_stream_unbuffered_readline_obj) },
    { MP_ROM_QSTR(MP_QSTR_write), MP_ROM_PTR(&mp_stream_write_obj) },
};
static MP_DEFINE_CONST_DICT(socket_locals, socket_locals_table);

static const mp_stream_p_t socket_stream = {
    .read = stream_read,
    .write = stream_write,
    .ioctl = stream_ioctl,
};

static MP_DEFINE_CONST_OBJ_TYPE(
    socket_type,
    MP_QSTR_socket,
    MP_TYPE_FLAG_NONE,
    make_new, socket_make_new,
    protocol, &socket_stream,
    locals_dict, &socket_locals
    );

// ---------------------------------------------------------------- the module

static mp_obj_t module_getaddrinfo(size_t n_args, const mp_obj_t *args) {
    mp_int_t kind = n_args > 3 ? mp_obj_get_int(args[3]) : 0;
    mp_int_t proto = n_args > 4 ? mp_obj_get_int(args[4]) : 0;
    const char *name = mp_obj_str_get_str(args[0]);
    struct in_addr ip = resolve(name);
    mp_obj_t address[2] = {
        netutils_format_ipv4_addr((uint8_t *)&ip, NETUTILS_BIG),
        mp_obj_new_int(port_of(args[1])),
    };
    mp_obj_t items[5] = {
        MP_OBJ_NEW_SMALL_INT(AF_INET),
        MP_OBJ_NEW_SMALL_INT(kind == 0 ? SOCK_STREAM : kind),
        MP_OBJ_NEW_SMALL_INT(proto),
        mp_obj_new_str_from_cstr(name[0] == 0 ? "0.0.0.0" : name),
        mp_obj_new_tuple(2, address),
    };
    mp_obj_t one = mp_obj_new_tuple(5, items);
    return mp_obj_new_list(1, &one);
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(module_getaddrinfo_obj, 2, 6, module_getaddrinfo);

static mp_obj_t module_init(void) {
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_0(module_init_obj, module_init);

static const mp_rom_map_elem_t module_table[] = {
    { MP_ROM_QSTR(MP_QSTR___name__), MP_ROM_QSTR(MP_QSTR_socket) },
    { MP_ROM_QSTR(MP_QSTR___init__), MP_ROM_PTR(&module_init_obj) },
    { MP_ROM_QSTR(MP_QSTR_socket), MP_ROM_PTR(&socket_type) },
    { MP_ROM_QSTR(MP_QSTR_getaddrinfo), MP_ROM_PTR(&module_getaddrinfo_obj) },
    { MP_ROM_QSTR(MP_QSTR_AF_INET), MP_ROM_INT(AF_INET) },
    { MP_ROM_QSTR(MP_QSTR_AF_INET6), MP_ROM_INT(10) },
    { MP_ROM_QSTR(MP_QSTR_SOCK_STREAM), MP_ROM_INT(SOCK_STREAM) },
    { MP_ROM_QSTR(MP_QSTR_SOCK_DGRAM), MP_ROM_INT(SOCK_DGRAM) },
    { MP_ROM_QSTR(MP_QSTR_SOCK_RAW), MP_ROM_INT(SOCK_RAW) },
    { MP_ROM_QSTR(MP_QSTR_IPPROTO_TCP), MP_ROM_INT(IPPROTO_TCP) },
    { MP_ROM_QSTR(MP_QSTR_IPPROTO_UDP), MP_ROM_INT(IPPROTO_UDP) },
    { MP_ROM_QSTR(MP_QSTR_IPPROTO_IP), MP_ROM_INT(IPPROTO_IP) },
    { MP_ROM_QSTR(MP_QSTR_SOL_SOCKET), MP_ROM_INT(LWIP_SOL_SOCKET) },
    { MP_ROM_QSTR(MP_QSTR_SO_REUSEADDR), MP_ROM_INT(LWIP_SO_REUSEADDR) },
    { MP_ROM_QSTR(MP_QSTR_SO_BROADCAST), MP_ROM_INT(LWIP_SO_BROADCAST) },
    { MP_ROM_QSTR(MP_QSTR_SO_BINDTODEVICE), MP_ROM_INT(LWIP_SO_BINDTODEVICE) },
    { MP_ROM_QSTR(MP_QSTR_IP_ADD_MEMBERSHIP), MP_ROM_INT(LWIP_IP_ADD_MEMBERSHIP) },
    { MP_ROM_QSTR(MP_QSTR_TCP_NODELAY), MP_ROM_INT(LWIP_TCP_NODELAY) },
};
static MP_DEFINE_CONST_DICT(module_globals, module_table);

const mp_obj_module_t board_module_socket = {
    .base = {&mp_type_module},
    .globals = (mp_obj_dict_t *)&module_globals,
};

MP_REGISTER_EXTENSIBLE_MODULE(MP_QSTR_socket, board_module_socket);
