// SPDX-License-Identifier: MIT
// Error numbers as an ESP32 has them: newlib's, with those of lwIP.
//
// Owns the MP_E* names for every file of the build: it is found before MicroPython's header
// of the same name. Never changes the host's errno: board_errno() translates.
#ifndef MICROPY_INCLUDED_PY_MPERRNO_H
#define MICROPY_INCLUDED_PY_MPERRNO_H

#include "py/mpconfig.h"
#include <errno.h>

#define MP_EPERM (1)
#define MP_ENOENT (2)
#define MP_ESRCH (3)
#define MP_EINTR (4)
#define MP_EIO (5)
#define MP_ENXIO (6)
#define MP_E2BIG (7)
#define MP_ENOEXEC (8)
#define MP_EBADF (9)
#define MP_ECHILD (10)
#define MP_EAGAIN (11)
#define MP_ENOMEM (12)
#define MP_EACCES (13)
#define MP_EFAULT (14)
#define MP_ENOTBLK (15)
#define MP_EBUSY (16)
#define MP_EEXIST (17)
#define MP_EXDEV (18)
#define MP_ENODEV (19)
#define MP_ENOTDIR (20)
#define MP_EISDIR (21)
#define MP_EINVAL (22)
#define MP_ENFILE (23)
#define MP_EMFILE (24)
#define MP_ENOTTY (25)
#define MP_ETXTBSY (26)
#define MP_EFBIG (27)
#define MP_ENOSPC (28)
#define MP_ESPIPE (29)
#define MP_EROFS (30)
#define MP_EMLINK (31)
#define MP_EPIPE (32)
#define MP_EDOM (33)
#define MP_ERANGE (34)
#define MP_EWOULDBLOCK MP_EAGAIN
#define MP_EOPNOTSUPP (95)
#define MP_EAFNOSUPPORT (106)
#define MP_ECONNRESET (104)
#define MP_ENOBUFS (105)
#define MP_EPROTOTYPE (107)
#define MP_ENOTSOCK (108)
#define MP_ECONNREFUSED (111)
#define MP_EADDRINUSE (112)
#define MP_ECONNABORTED (113)
#define MP_ENETUNREACH (114)
#define MP_ENETDOWN (115)
#define MP_ETIMEDOUT (116)
#define MP_EHOSTDOWN (117)
#define MP_EHOSTUNREACH (118)
#define MP_EINPROGRESS (119)
#define MP_EALREADY (120)
#define MP_EDESTADDRREQ (121)
#define MP_EMSGSIZE (122)
#define MP_EPROTONOSUPPORT (123)
#define MP_EADDRNOTAVAIL (125)
#define MP_EISCONN (127)
#define MP_ENOTCONN (128)
#define MP_ECANCELED (140)

#if MICROPY_PY_ERRNO
#include "py/obj.h"
qstr mp_errno_to_str(mp_obj_t errno_val);
#endif

#endif
