// SPDX-License-Identifier: MIT
// The recovery endpoint: one connection whose server is known by one pinned certificate, on dates
// that nobody judges.
//
// A device whose roots have all expired must still be able to fetch a bundle, whose signature then
// decides; it may have no clock that is worth anything. So pinned(der) changes the next connection that
// is set up, and that one alone: its chain must end in that certificate (an authority's, or the
// server's own, signed by itself) whatever other roots there are; "expired" and "not yet valid" do not
// count; the name does, and everything else that tlspolicy enforces. Nothing is gained by that for
// anything but the recovery: such a connection shows no certificate of the device, offers and keeps no
// session, and takes nothing to send that does not begin as the question for a bundle does. So no MQTT
// goes over it, whoever asks for it.
// Owns the certificate that waits for its connection, in the C heap.

#include <string.h>

#include "py/mperrno.h"

#include "tlspolicy_internal.h"

#include "mbedtls/platform.h"

static const char question[] = "GET /outpost/";

static mbedtls_x509_crt *waiting;

mbedtls_x509_crt *tlspolicy_pin_take(void) {
    mbedtls_x509_crt *pin = waiting;
    waiting = NULL;
    return pin;
}

bool tlspolicy_pin_allows(size_t said, const unsigned char *buf, size_t len) {
    size_t wanted = sizeof(question) - 1;
    if (said >= wanted) {
        return true;
    }
    size_t n = len < wanted - said ? len : wanted - said;
    return memcmp(buf, question + said, n) == 0;
}

static mp_obj_t tlspolicy_pinned(mp_obj_t der) {
    tlspolicy_free_roots(tlspolicy_pin_take());
    if (der == mp_const_none) {
        return mp_const_none;
    }
    mp_buffer_info_t bytes;
    mp_get_buffer_raise(der, &bytes, MP_BUFFER_READ);
    mbedtls_x509_crt *pin = mbedtls_calloc(1, sizeof(*pin));
    if (pin == NULL) {
        mp_raise_OSError(MP_ENOMEM);
    }
    mbedtls_x509_crt_init(pin);
    tlspolicy_memory_ended();
    int ret = mbedtls_x509_crt_parse_der(pin, bytes.buf, bytes.len);
    if (ret == 0) {
        waiting = pin;
        return mp_const_none;
    }
    tlspolicy_free_roots(pin);
    if (tlspolicy_out_of_memory(ret) || tlspolicy_memory_ended()) {
        mp_raise_OSError(MP_ENOMEM);
    }
    mp_raise_ValueError(MP_ERROR_TEXT("the pinned certificate cannot be read"));
}
MP_DEFINE_CONST_FUN_OBJ_1(tlspolicy_pinned_obj, tlspolicy_pinned);
