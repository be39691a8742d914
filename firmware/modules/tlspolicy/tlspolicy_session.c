// SPDX-License-Identifier: MIT
// Resumption: the session of a verified connection, to be offered to the same server again.
//
// A session is handed to Python as bytes, once, and offered by it to the connections that follow.
// It goes to the server whose name was verified when it was made, with the record size that was
// asked for then (RFC 6066 binds one to the other), and to no other. What was changed on its way,
// or is of another build, is not offered. Owns two copies in C heap, wiped when they are let go.
// Never makes a connection of a session alone: the server proves that it holds the same secret,
// or a full handshake takes place.

#include <string.h>

#include "py/mperrno.h"
#include "py/runtime.h"

#include "tlspolicy_internal.h"

#include "mbedtls/platform.h"
#include "mbedtls/platform_util.h"
#include "mbedtls/sha256.h"

#define MAGIC "OTS1"
#define BYTES_MAX (4096)

// How the bytes begin; mbedtls's own follow. `digest` is of all behind it.
typedef struct {
    uint8_t magic[4];
    uint8_t digest[32];
    uint8_t host[32];           // SHA-256 of the name that was verified
    uint8_t root[32];           // that anchored the chain
    uint8_t asked[2];           // record size, most significant byte first; 0: none
} head_t;

#define DIGEST_END (offsetof(head_t, host))

typedef struct {
    uint8_t *bytes;
    size_t len;
} held_t;

static held_t offered, kept;
static bool keep_next;

static void let_go(held_t *held) {
    if (held->bytes != NULL) {
        mbedtls_platform_zeroize(held->bytes, held->len);
        mbedtls_free(held->bytes);
    }
    held->bytes = NULL;
    held->len = 0;
}

static bool digest_of(const uint8_t *bytes, size_t len, uint8_t digest[32]) {
    return mbedtls_sha256(bytes + DIGEST_END, len - DIGEST_END, digest, 0) == 0;
}

bool tlspolicy_session_wanted(void) {
    return keep_next || offered.bytes != NULL;
}

void tlspolicy_session_host(const char *name, uint8_t host[32]) {
    if (name == NULL || mbedtls_sha256((const uint8_t *)name, strlen(name), host, 0) != 0) {
        memset(host, 0, 32);
    }
}

bool tlspolicy_session_offer(mbedtls_ssl_context *ssl, const uint8_t host[32], uint16_t asked,
    uint8_t root[32]) {
    if (offered.bytes == NULL) {
        return false;
    }
    const head_t *head = (const head_t *)offered.bytes;
    if (memcmp(head->host, host, sizeof(head->host)) != 0
        || (head->asked[0] << 8 | head->asked[1]) != asked) {
        return false;
    }
    mbedtls_ssl_session session;
    mbedtls_ssl_session_init(&session);
    bool done = mbedtls_ssl_session_load(&session, offered.bytes + sizeof(*head),
        offered.len - sizeof(*head)) == 0
        && mbedtls_ssl_set_session(ssl, &session) == 0;
    mbedtls_ssl_session_free(&session);
    if (done) {
        memcpy(root, head->root, sizeof(head->root));
    }
    return done;
}

void tlspolicy_session_keep(const mbedtls_ssl_context *ssl, const uint8_t host[32], uint16_t asked,
    const uint8_t root[32]) {
    if (!keep_next) {
        return;
    }
    let_go(&kept);
    mbedtls_ssl_session session;
    mbedtls_ssl_session_init(&session);
    size_t len = 0;
    if (mbedtls_ssl_get_session(ssl, &session) == 0) {
        (void)mbedtls_ssl_session_save(&session, NULL, 0, &len);
    }
    if (len > 0 && len <= BYTES_MAX) {
        kept.len = sizeof(head_t) + len;
        kept.bytes = mbedtls_calloc(1, kept.len);
    }
    if (kept.bytes != NULL) {
        head_t *head = (head_t *)kept.bytes;
        memcpy(head->magic, MAGIC, sizeof(head->magic));
        memcpy(head->host, host, sizeof(head->host));
        memcpy(head->root, root, sizeof(head->root));
        head->asked[0] = asked >> 8;
        head->asked[1] = asked & 0xff;
        if (mbedtls_ssl_session_save(&session, kept.bytes + sizeof(*head), len, &len) != 0
            || !digest_of(kept.bytes, kept.len, head->digest)) {
            let_go(&kept);
        }
    }
    mbedtls_ssl_session_free(&session);
}

// session() gives the one of the last handshake, once, or None; session(bytes) offers one to the
// connections that follow, session(None) none. True where it can be offered.
static mp_obj_t tlspolicy_session(size_t n_args, const mp_obj_t *args) {
    if (n_args == 0) {
        mp_obj_t bytes = mp_const_none;
        if (kept.bytes != NULL) {
            bytes = mp_obj_new_bytes(kept.bytes, kept.len);
            let_go(&kept);
        }
        return bytes;
    }
    let_go(&offered);
    if (args[0] == mp_const_none) {
        return mp_const_false;
    }
    mp_buffer_info_t given;
    mp_get_buffer_raise(args[0], &given, MP_BUFFER_READ);
    uint8_t digest[32];
    if (given.len <= sizeof(head_t) || given.len > sizeof(head_t) + BYTES_MAX
        || memcmp(given.buf, MAGIC, 4) != 0 || !digest_of(given.buf, given.len, digest)
        || memcmp(((const head_t *)given.buf)->digest, digest, sizeof(digest)) != 0) {
        return mp_const_false;
    }
    // Its own session may be of another build of mbedtls.
    mbedtls_ssl_session session;
    mbedtls_ssl_session_init(&session);
    int ret = mbedtls_ssl_session_load(&session, (const uint8_t *)given.buf + sizeof(head_t),
        given.len - sizeof(head_t));
    mbedtls_ssl_session_free(&session);
    if (ret != 0) {
        return mp_const_false;
    }
    offered.bytes = mbedtls_calloc(1, given.len);
    if (offered.bytes == NULL) {
        mp_raise_OSError(MP_ENOMEM);
    }
    offered.len = given.len;
    memcpy(offered.bytes, given.buf, given.len);
    return mp_const_true;
}
MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(tlspolicy_session_obj, 0, 1, tlspolicy_session);

static mp_obj_t tlspolicy_keep_session(size_t n_args, const mp_obj_t *args) {
    if (n_args == 1) {
        keep_next = mp_obj_is_true(args[0]);
        if (!keep_next) {
            let_go(&kept);
        }
    }
    return mp_obj_new_bool(keep_next);
}
MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(tlspolicy_keep_session_obj, 0, 1, tlspolicy_keep_session);
