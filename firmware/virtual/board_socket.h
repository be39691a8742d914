// SPDX-License-Identifier: MIT
// What the parts of the socket module share; board_socket.c says what they promise together.
#ifndef OUTPOST_BOARD_SOCKET_H
#define OUTPOST_BOARD_SOCKET_H

#include <limits.h>
#include <netinet/in.h>

#include "py/obj.h"
#include "py/stream.h"

// lwIP's numbers, where they are not the host's.
#define LWIP_SOL_SOCKET (0xfff)
#define LWIP_SO_REUSEADDR (0x0004)
#define LWIP_SO_BROADCAST (0x0020)
#define LWIP_SO_BINDTODEVICE (0x100b)
#define LWIP_IP_ADD_MEMBERSHIP (3)
#define LWIP_TCP_NODELAY (1)

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

// ---- board_socket.c

// The host's socket is closed, once.
void board_socket_close(socket_obj_t *self);

// ---- board_socket_wait.c: time-outs

// UINT64_MAX: for ever.
void board_socket_set_timeout(socket_obj_t *self, uint64_t ms);
// One slice, or none where the socket does not block. True: go and try again.
bool board_socket_wait_slice(socket_obj_t *self, short events, unsigned int turn);
// The error of a wait that ended without anything.
int board_socket_nothing_came(const socket_obj_t *self);
bool board_socket_again(int host_errno);
MP_DECLARE_CONST_FUN_OBJ_2(board_socket_settimeout_obj);
MP_DECLARE_CONST_FUN_OBJ_2(board_socket_setblocking_obj);

// ---- board_socket_names.c: addresses and names

void board_socket_need_radio(void);
struct sockaddr_in board_socket_address_of(mp_obj_t tuple);
mp_obj_t board_socket_tuple_of(const struct sockaddr_in *address);
MP_DECLARE_CONST_FUN_OBJ_VAR_BETWEEN(board_socket_getaddrinfo_obj);

// ---- board_socket_options.c

MP_DECLARE_CONST_FUN_OBJ_VAR_BETWEEN(board_socket_setsockopt_obj);

// ---- board_socket_stream.c: reading and writing

extern const mp_stream_p_t board_socket_stream;
MP_DECLARE_CONST_FUN_OBJ_2(board_socket_recv_obj);
MP_DECLARE_CONST_FUN_OBJ_2(board_socket_recvfrom_obj);
MP_DECLARE_CONST_FUN_OBJ_2(board_socket_send_obj);
MP_DECLARE_CONST_FUN_OBJ_2(board_socket_sendall_obj);
MP_DECLARE_CONST_FUN_OBJ_3(board_socket_sendto_obj);

#endif
