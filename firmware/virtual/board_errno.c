// SPDX-License-Identifier: MIT
// The host's error numbers as an ESP32 has them.
//
// Owns the translation of what a socket call can answer. Below 35 both agree.
// Never translates the other way.
#include <errno.h>

#include "board.h"
#include "py/mperrno.h"

int board_errno(int host_errno) {
    switch (host_errno) {
        case EPIPE:         // lwIP knows no broken pipe: the connection was reset
        case ECONNRESET:
            return MP_ECONNRESET;
        case EOPNOTSUPP:
            return MP_EOPNOTSUPP;
        case EAFNOSUPPORT:
            return MP_EAFNOSUPPORT;
        case ENOBUFS:
            return MP_ENOBUFS;
        case ENOTSOCK:
            return MP_ENOTSOCK;
        case ECONNREFUSED:
            return MP_ECONNREFUSED;
        case EADDRINUSE:
            return MP_EADDRINUSE;
        case ECONNABORTED:
            return MP_ECONNABORTED;
        case ENETUNREACH:   // lwIP has no route: EHOSTUNREACH
        case ENETDOWN:
        case EHOSTDOWN:
        case EHOSTUNREACH:
            return MP_EHOSTUNREACH;
        case ETIMEDOUT:     // lwIP gives up a connection: aborted
            return MP_ECONNABORTED;
        case EINPROGRESS:
            return MP_EINPROGRESS;
        case EALREADY:
            return MP_EALREADY;
        case EDESTADDRREQ:
            return MP_EDESTADDRREQ;
        case EMSGSIZE:
            return MP_EMSGSIZE;
        case EPROTONOSUPPORT:
            return MP_EPROTONOSUPPORT;
        case EPROTOTYPE:
            return MP_EPROTOTYPE;
        case EADDRNOTAVAIL:
            return MP_EADDRNOTAVAIL;
        case EISCONN:
            return MP_EISCONN;
        case ENOTCONN:
            return MP_ENOTCONN;
        case EMFILE:
            return MP_ENFILE;
        default:
            return host_errno < 35 ? host_errno : MP_EIO;
    }
}
