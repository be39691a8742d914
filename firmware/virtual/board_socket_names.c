// SPDX-License-Identifier: MIT
// Names and addresses of the socket module.
//
// Owns getaddrinfo. Never goes out while the radio is down, never asks the host's name service for
// a name that --hosts gives.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>

#include "py/mperrno.h"
#include "py/runtime.h"
#include "shared/netutils/netutils.h"

#include "board.h"
#include "board_socket.h"

#define NAME_NOT_FOUND (-202)
#define ANSWER_IS_NOBODY (-2)

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
    if (strcasecmp(name, "localhost") == 0) {
        ip.s_addr = htonl(INADDR_LOOPBACK);     // lwIP asks nobody for it either
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

struct sockaddr_in board_socket_address_of(mp_obj_t tuple) {
    mp_obj_t *items;
    mp_obj_get_array_fixed_n(tuple, 2, &items);
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr = resolve(mp_obj_str_get_str(items[0]));
    address.sin_port = htons(port_of(items[1]));
    return address;
}

mp_obj_t board_socket_tuple_of(const struct sockaddr_in *address) {
    return netutils_format_inet_addr((uint8_t *)&address->sin_addr, ntohs(address->sin_port), NETUTILS_BIG);
}

void board_socket_need_radio(void) {
    if (board.is_board && !board_wifi_up()) {
        mp_raise_OSError(MP_EHOSTUNREACH);
    }
}

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
MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(board_socket_getaddrinfo_obj, 2, 6, module_getaddrinfo);
