// SPDX-License-Identifier: MIT
// The socket module with the manners of lwIP on an ESP32, over the host's sockets.
//
// Owns the sockets from their making to their end; the board has ten. Error numbers are the
// board's. Never goes out while the radio is down.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "py/gc.h"
#include "py/mperrno.h"
#include "py/runtime.h"
#include "py/stream.h"

#include "board.h"
#include "board_socket.h"

#define MAX_SOCKETS (10)
#define SEND_BUFFER (5760)      // ESP-IDF's: larger writes are partial, or wait

static int open_sockets;

static socket_obj_t *new_object(const mp_obj_type_t *type, int domain, int kind, int proto) {
    socket_obj_t *self = mp_obj_malloc_with_finaliser(socket_obj_t, type);
    self->fd = -1;
    self->domain = (uint8_t)domain;
    self->type = (uint8_t)kind;
    self->proto = (uint8_t)proto;
    self->state = kind == SOCK_STREAM ? STATE_NEW : STATE_CONNECTED;
    board_socket_set_timeout(self, UINT64_MAX);
    return self;
}

static void keep(socket_obj_t *self, int fd) {
    int size = SEND_BUFFER;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    self->fd = fd;
    open_sockets++;
}

void board_socket_close(socket_obj_t *self) {
    if (self->fd >= 0) {
        close(self->fd);
        self->fd = -1;
        open_sockets--;
    }
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
    struct sockaddr_in address = board_socket_address_of(address_in);
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
            mp_obj_t items[2] = {MP_OBJ_FROM_PTR(other), board_socket_tuple_of(&from)};
            return mp_obj_new_tuple(2, items);
        }
        if (!board_socket_again(errno)) {
            mp_raise_OSError(board_errno(errno));
        }
        if (!board_socket_wait_slice(self, POLLIN, turn)) {
            mp_raise_OSError(board_socket_nothing_came(self));
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
    struct sockaddr_in address = board_socket_address_of(address_in);
    board_socket_need_radio();
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
        if (!board_socket_wait_slice(self, POLLOUT, turn)) {
            mp_raise_OSError(MP_ETIMEDOUT);
        }
    }
}
static MP_DEFINE_CONST_FUN_OBJ_2(socket_connect_obj, socket_connect);

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
    { MP_ROM_QSTR(MP_QSTR_send), MP_ROM_PTR(&board_socket_send_obj) },
    { MP_ROM_QSTR(MP_QSTR_sendall), MP_ROM_PTR(&board_socket_sendall_obj) },
    { MP_ROM_QSTR(MP_QSTR_sendto), MP_ROM_PTR(&board_socket_sendto_obj) },
    { MP_ROM_QSTR(MP_QSTR_recv), MP_ROM_PTR(&board_socket_recv_obj) },
    { MP_ROM_QSTR(MP_QSTR_recvfrom), MP_ROM_PTR(&board_socket_recvfrom_obj) },
    { MP_ROM_QSTR(MP_QSTR_setsockopt), MP_ROM_PTR(&board_socket_setsockopt_obj) },
    { MP_ROM_QSTR(MP_QSTR_settimeout), MP_ROM_PTR(&board_socket_settimeout_obj) },
    { MP_ROM_QSTR(MP_QSTR_setblocking), MP_ROM_PTR(&board_socket_setblocking_obj) },
    { MP_ROM_QSTR(MP_QSTR_makefile), MP_ROM_PTR(&socket_makefile_obj) },
    { MP_ROM_QSTR(MP_QSTR_fileno), MP_ROM_PTR(&socket_fileno_obj) },
    { MP_ROM_QSTR(MP_QSTR_read), MP_ROM_PTR(&mp_stream_read_obj) },
    { MP_ROM_QSTR(MP_QSTR_readinto), MP_ROM_PTR(&mp_stream_readinto_obj) },
    { MP_ROM_QSTR(MP_QSTR_readline), MP_ROM_PTR(&mp_stream_unbuffered_readline_obj) },
    { MP_ROM_QSTR(MP_QSTR_write), MP_ROM_PTR(&mp_stream_write_obj) },
};
static MP_DEFINE_CONST_DICT(socket_locals, socket_locals_table);

static MP_DEFINE_CONST_OBJ_TYPE(
    socket_type,
    MP_QSTR_socket,
    MP_TYPE_FLAG_NONE,
    make_new, socket_make_new,
    protocol, &board_socket_stream,
    locals_dict, &socket_locals
    );

static mp_obj_t module_init(void) {
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_0(module_init_obj, module_init);

static const mp_rom_map_elem_t module_table[] = {
    { MP_ROM_QSTR(MP_QSTR___name__), MP_ROM_QSTR(MP_QSTR_socket) },
    { MP_ROM_QSTR(MP_QSTR___init__), MP_ROM_PTR(&module_init_obj) },
    { MP_ROM_QSTR(MP_QSTR_socket), MP_ROM_PTR(&socket_type) },
    { MP_ROM_QSTR(MP_QSTR_getaddrinfo), MP_ROM_PTR(&board_socket_getaddrinfo_obj) },
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
