// SPDX-License-Identifier: MIT
// setsockopt, with lwIP's numbers.
//
// Owns the list of options that the board has. Never passes a number on to the host as it is.
#include <errno.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "py/mphal.h"
#include "py/runtime.h"

#include "board.h"
#include "board_socket.h"

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
MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(board_socket_setsockopt_obj, 4, 4, socket_setsockopt);
