// SPDX-License-Identifier: MIT
// What the parts of tlspolicy share.
//
// tlspolicy.c          the floor, the record size, the handshake
// tlspolicy_hello.c    what the server says first
// tlspolicy_roots.c    what gives the trusted roots
// tlspolicy_client.c   the client's certificate and who signs for it
// tlspolicy_keys.c     the keys of the device: what Python may ask of them
// tlspolicy_ec.c       P-256: signatures, shared secrets, points
// tlspolicy_store.c    where the private keys lie, and who may not go there
// tlspolicy_der.c      what is written and read in DER: requests, certificates, signatures
// tlspolicy_cert.c     certificates as Python sees them
// tlspolicy_pin.c      the one connection to the recovery endpoint
// tlspolicy_session.c  the session of a connection, offered to the same server again
#ifndef OUTPOST_TLSPOLICY_INTERNAL_H
#define OUTPOST_TLSPOLICY_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "py/obj.h"
#include "py/runtime.h"

#include "mbedtls/ecp.h"
#include "mbedtls/ssl.h"
#include "mbedtls/x509_crt.h"

// MicroPython has changed the name that it has for this.
#define TLSPOLICY_NORETURN __attribute__((noreturn))

#define TLSPOLICY_SLOTS (8)
#define TLSPOLICY_SCALAR_BYTES (32)
#define TLSPOLICY_POINT_BYTES (65)
#define TLSPOLICY_HASH_BYTES (32)
#define TLSPOLICY_RAW_SIGNATURE_BYTES (64)
// SEQUENCE of two INTEGERs of up to 33 bytes.
#define TLSPOLICY_DER_SIGNATURE_BYTES (72)
#define TLSPOLICY_NAME_BYTES (128)
#define TLSPOLICY_DATE_BYTES (14)
// The longest thing written here: a self-signed certificate with the longest name in it twice.
#define TLSPOLICY_DER_BYTES (768)

// ---- tlspolicy_hello.c

// What the server said first, followed byte by byte.
typedef struct {
    uint8_t record[5];          // header of the record being read
    uint8_t record_have;
    uint16_t record_left;
    uint8_t message[4];         // header of the handshake message being read
    uint8_t message_have;
    uint32_t message_left;
    uint32_t at;                // offset in the body of the ServerHello
    uint32_t extensions_at;     // where its extensions begin, once known
    uint8_t extension[4];
    uint8_t extension_have;
    uint16_t extension_left;
    uint8_t echoed;             // code of max_fragment_length, 0: not echoed
    uint32_t certificate_size;
    bool hello_seen;
    bool done;
} tlspolicy_hello_t;

void tlspolicy_hello_take(tlspolicy_hello_t *hello, uint8_t byte);
// How many bytes can be read next without reading past what is looked for.
size_t tlspolicy_hello_wants(const tlspolicy_hello_t *hello);

// ---- tlspolicy_roots.c

typedef struct _tlspolicy_provider_t tlspolicy_provider_t;

// The one in force, for a connection to keep until it releases it; NULL: none.
tlspolicy_provider_t *tlspolicy_provider_take(void);
void tlspolicy_provider_release(tlspolicy_provider_t *provider);
// Asks the provider for all its roots, and adds to *found each that may have issued `child`.
// Raises what the provider raises, and where it gives something that is not a certificate.
void tlspolicy_walk_roots(tlspolicy_provider_t *provider, const mbedtls_x509_crt *child,
    mbedtls_x509_crt **found);
void tlspolicy_free_roots(mbedtls_x509_crt *roots);
MP_DECLARE_CONST_FUN_OBJ_VAR_BETWEEN(tlspolicy_roots_obj);

// ---- tlspolicy_store.c

// As it lies in the NVS: one blob, so that it is there whole or not at all.
typedef struct {
    uint8_t form;
    uint8_t scalar[TLSPOLICY_SCALAR_BYTES];     // the private key
    uint8_t point[TLSPOLICY_POINT_BYTES];       // the public one, uncompressed
} tlspolicy_key_t;

// Each answers 0 or ESP-IDF's code. Who loads a key wipes it.
int tlspolicy_key_load(unsigned slot, tlspolicy_key_t *key);
int tlspolicy_key_save(unsigned slot, tlspolicy_key_t *key);
int tlspolicy_key_remove(unsigned slot);
TLSPOLICY_NORETURN void tlspolicy_raise_store(int code);

// ---- tlspolicy_ec.c: each answers 0 or mbedtls's code

int tlspolicy_ec_random(void *out, size_t len);
int tlspolicy_ec_make(tlspolicy_key_t *key);
int tlspolicy_ec_sign(const tlspolicy_key_t *key, const uint8_t hash[TLSPOLICY_HASH_BYTES],
    uint8_t raw[TLSPOLICY_RAW_SIGNATURE_BYTES]);
// MBEDTLS_ERR_ECP_INVALID_KEY: the point is not on the curve.
int tlspolicy_ec_agree(const tlspolicy_key_t *key, const uint8_t point[TLSPOLICY_POINT_BYTES],
    uint8_t secret[TLSPOLICY_SCALAR_BYTES]);
int tlspolicy_ec_verify(const uint8_t point[TLSPOLICY_POINT_BYTES],
    const uint8_t hash[TLSPOLICY_HASH_BYTES], const uint8_t raw[TLSPOLICY_RAW_SIGNATURE_BYTES]);
int tlspolicy_ec_check_point(const uint8_t point[TLSPOLICY_POINT_BYTES]);
// The point of a public key; MBEDTLS_ERR_ECP_FEATURE_UNAVAILABLE where it is not one of P-256.
int tlspolicy_ec_point_of(const mbedtls_pk_context *pk, uint8_t point[TLSPOLICY_POINT_BYTES]);
bool tlspolicy_out_of_memory(int code);
TLSPOLICY_NORETURN void tlspolicy_raise_ec(int code);

// ---- tlspolicy_der.c

// Signs what is written: ECDSA over its hash, r and s side by side. 0 or mbedtls's code.
typedef int tlspolicy_signer_t(void *context, const uint8_t hash[TLSPOLICY_HASH_BYTES],
    uint8_t raw[TLSPOLICY_RAW_SIGNATURE_BYTES]);

// Strictly as X.690 has it; false where it is anything else, or a number has more than 32 bytes.
bool tlspolicy_der_to_raw(const uint8_t *der, size_t len, uint8_t raw[TLSPOLICY_RAW_SIGNATURE_BYTES]);
size_t tlspolicy_raw_to_der(const uint8_t raw[TLSPOLICY_RAW_SIGNATURE_BYTES],
    uint8_t der[TLSPOLICY_DER_SIGNATURE_BYTES]);
// How many bytes the first element has, its header included; 0: it is not a whole SEQUENCE.
size_t tlspolicy_der_length(const uint8_t *der, size_t len);

typedef struct {
    const uint8_t *point;
    const char *name;
    size_t name_len;
    const char *not_before, *not_after;         // NULL: a request, else a certificate
    uint8_t serial[16];
    tlspolicy_signer_t *sign;
    void *context;
} tlspolicy_paper_t;

// A request or a self-signed certificate. Its length (it lies at the *end* of the buffer), or
// mbedtls's code.
int tlspolicy_der_write(const tlspolicy_paper_t *paper, uint8_t buffer[TLSPOLICY_DER_BYTES]);

// ---- tlspolicy_cert.c

// Takes each certificate of a chain in turn: DER, one after the other. Raises ValueError.
void tlspolicy_read_certificate(mbedtls_x509_crt *crt, const uint8_t *der, size_t len);
MP_DECLARE_CONST_FUN_OBJ_1(tlspolicy_certificate_obj);
MP_DECLARE_CONST_FUN_OBJ_1(tlspolicy_chain_ok_obj);

// ---- tlspolicy_keys.c

MP_DECLARE_CONST_FUN_OBJ_VAR_BETWEEN(tlspolicy_key_new_obj);
MP_DECLARE_CONST_FUN_OBJ_1(tlspolicy_key_public_obj);
MP_DECLARE_CONST_FUN_OBJ_1(tlspolicy_key_erase_obj);
MP_DECLARE_CONST_FUN_OBJ_2(tlspolicy_key_csr_obj);
MP_DECLARE_CONST_FUN_OBJ_2(tlspolicy_key_sign_obj);
MP_DECLARE_CONST_FUN_OBJ_2(tlspolicy_key_agree_obj);
MP_DECLARE_CONST_FUN_OBJ_3(tlspolicy_verify_obj);
MP_DECLARE_CONST_FUN_OBJ_VAR_BETWEEN(tlspolicy_self_signed_obj);
unsigned tlspolicy_slot(mp_obj_t slot);

// ---- tlspolicy_client.c

typedef struct _tlspolicy_own_t tlspolicy_own_t;

// What the connections from now on prove themselves with; NULL in *own: nothing. 0 or a code.
int tlspolicy_own_take(tlspolicy_own_t **own);
void tlspolicy_own_free(tlspolicy_own_t *own);
mbedtls_x509_crt *tlspolicy_own_chain(tlspolicy_own_t *own);
mbedtls_pk_context *tlspolicy_own_key(tlspolicy_own_t *own);
// How long the handshake message with the chain in it is.
size_t tlspolicy_own_message(const tlspolicy_own_t *own);
MP_DECLARE_CONST_FUN_OBJ_VAR_BETWEEN(tlspolicy_client_obj);

// ---- tlspolicy_session.c

// Whether a session is to be kept or offered at all: tickets are asked for only then.
bool tlspolicy_session_wanted(void);
void tlspolicy_session_host(const char *name, uint8_t host[32]);
// Before the first message of a handshake. True where a session was made with this server, by its
// name, and with this record size; `root` is then the root that it was verified by.
bool tlspolicy_session_offer(mbedtls_ssl_context *ssl, const uint8_t host[32], uint16_t asked,
    uint8_t root[32]);
// After a handshake that ended well.
void tlspolicy_session_keep(const mbedtls_ssl_context *ssl, const uint8_t host[32], uint16_t asked,
    const uint8_t root[32]);
MP_DECLARE_CONST_FUN_OBJ_VAR_BETWEEN(tlspolicy_session_obj);
MP_DECLARE_CONST_FUN_OBJ_VAR_BETWEEN(tlspolicy_keep_session_obj);

// ---- tlspolicy_pin.c

// The certificate that the connection being set up is pinned to, which is its from then on; NULL: none.
mbedtls_x509_crt *tlspolicy_pin_take(void);
// Whether a pinned connection that has sent `said` bytes may go on with these.
bool tlspolicy_pin_allows(size_t said, const unsigned char *buf, size_t len);
MP_DECLARE_CONST_FUN_OBJ_1(tlspolicy_pinned_obj);

// ---- tlspolicy.c

// The connection in whose handshake mbedtls is just now; NULL: none. `own` gets what it proves
// itself with.
void *tlspolicy_in_handshake(tlspolicy_own_t **own);
// Whether mbedtls was refused memory since the last question. For an RSA key that it cannot load
// mbedtls's own code is the same as for one that makes no sense.
bool tlspolicy_memory_ended(void);
// Around a call out of mbedtls into Python. `raised`: an exception to go on its way once mbedtls
// has come back, or NULL. False: the connection was closed meanwhile.
size_t tlspolicy_step_out(void);
bool tlspolicy_step_in(void *connection, size_t before, mp_obj_t raised);

#endif
