// SPDX-License-Identifier: MIT
// The client's certificate, and who signs for it in the handshake: a key of the device's own, or
// an external signer (a secure element).
//
// Owns what client() set, in the MicroPython heap (its finaliser takes it out at a soft reset), and
// for each handshake a copy of the chain in the C heap. mbedtls gets the leaf's public key as "the
// key"; when it signs with that, the linker hands the call to this file (--wrap). So a private key
// is in RAM only while it signs. Never falls back to another key or to none.

#include <string.h>

#include "py/mperrno.h"

#include "tlspolicy_internal.h"

#include "mbedtls/ecdsa.h"
#include "mbedtls/pk.h"
#include "mbedtls/platform.h"
#include "mbedtls/platform_util.h"

#include "nvs.h"

// With its header the message must fit into the largest send buffer of a connection.
#define MAX_MESSAGE (4096)
#define MAX_CHAIN (6)
#define MESSAGE_HEAD (7)
#define CERTIFICATE_HEAD (3)
#define NO_SLOT (0xff)

typedef struct _tlspolicy_client_t {
    mp_obj_base_t base;
    mp_obj_t chain;             // bytes
    mp_obj_t signer;            // a callable, or None
    uint32_t number;            // a new one each time, so that a handshake knows its own
    uint8_t slot;
} client_t;

MP_REGISTER_ROOT_POINTER(struct _tlspolicy_client_t *tlspolicy_client);

struct _tlspolicy_own_t {
    mbedtls_x509_crt chain;
    uint8_t point[TLSPOLICY_POINT_BYTES];
    size_t message;
    uint32_t number;
    uint8_t slot;
};

int __real_mbedtls_ecdsa_write_signature(mbedtls_ecdsa_context *key, mbedtls_md_type_t md,
    const unsigned char *hash, size_t hash_len, unsigned char *sig, size_t sig_size, size_t *sig_len,
    int (*random)(void *, unsigned char *, size_t), void *generator);
int __wrap_mbedtls_ecdsa_write_signature(mbedtls_ecdsa_context *key, mbedtls_md_type_t md,
    const unsigned char *hash, size_t hash_len, unsigned char *sig, size_t sig_size, size_t *sig_len,
    int (*random)(void *, unsigned char *, size_t), void *generator);

// ---- for a connection

void tlspolicy_own_free(tlspolicy_own_t *own) {
    if (own != NULL) {
        mbedtls_x509_crt_free(&own->chain);
        mbedtls_free(own);
    }
}

// The chain, read into the C heap. 0 or mbedtls's code.
static int read_chain(const uint8_t *der, size_t len, tlspolicy_own_t **result) {
    int ret = MBEDTLS_ERR_X509_ALLOC_FAILED;
    tlspolicy_own_t *own = mbedtls_calloc(1, sizeof(*own));
    *result = NULL;
    if (own == NULL) {
        return ret;
    }
    mbedtls_x509_crt_init(&own->chain);
    own->message = MESSAGE_HEAD;
    ret = len == 0 ? MBEDTLS_ERR_X509_INVALID_FORMAT : 0;
    tlspolicy_memory_ended();
    for (int count = 1; ret == 0 && len > 0; ++count) {
        size_t size = tlspolicy_der_length(der, len);
        ret = size == 0 || count > MAX_CHAIN ? MBEDTLS_ERR_X509_INVALID_FORMAT
            : mbedtls_x509_crt_parse_der(&own->chain, der, size);
        own->message += CERTIFICATE_HEAD + size;
        der += size;
        len -= size;
    }
    if (ret == 0) {
        ret = tlspolicy_ec_point_of(&own->chain.pk, own->point);
    }
    if (ret != 0) {
        tlspolicy_own_free(own);
        return tlspolicy_memory_ended() ? MBEDTLS_ERR_X509_ALLOC_FAILED : ret;
    }
    *result = own;
    return 0;
}

int tlspolicy_own_take(tlspolicy_own_t **own) {
    const client_t *client = MP_STATE_VM(tlspolicy_client);
    *own = NULL;
    if (client == NULL) {
        return 0;
    }
    size_t len;
    const uint8_t *der = (const uint8_t *)mp_obj_str_get_data(client->chain, &len);
    int ret = read_chain(der, len, own);
    if (ret == 0) {
        (*own)->number = client->number;
        (*own)->slot = client->slot;
    }
    // The code at which MicroPython collects garbage and tries once more.
    return tlspolicy_out_of_memory(ret) ? MBEDTLS_ERR_SSL_ALLOC_FAILED : ret;
}

mbedtls_x509_crt *tlspolicy_own_chain(tlspolicy_own_t *own) {
    return &own->chain;
}

mbedtls_pk_context *tlspolicy_own_key(tlspolicy_own_t *own) {
    return &own->chain.pk;
}

size_t tlspolicy_own_message(const tlspolicy_own_t *own) {
    return own->message;
}

// ---- the signature

static int sign_with_slot(const tlspolicy_own_t *own, const uint8_t *hash, uint8_t *raw) {
    tlspolicy_key_t key;
    int ret = MBEDTLS_ERR_PK_KEY_INVALID_FORMAT;
    if (tlspolicy_key_load(own->slot, &key) == ESP_OK
        && memcmp(key.point, own->point, sizeof(key.point)) == 0) {
        ret = tlspolicy_ec_sign(&key, hash, raw);
    }
    mbedtls_platform_zeroize(&key, sizeof(key));
    return ret;
}

// The signer may raise, take its time, close the connection, or change what client() set.
static int sign_with_signer(void *connection, uint32_t number, const uint8_t *hash, uint8_t *raw) {
    const client_t *client = MP_STATE_VM(tlspolicy_client);
    if (client == NULL || client->number != number) {
        return MBEDTLS_ERR_PK_KEY_INVALID_FORMAT;
    }
    mp_obj_t raised = MP_OBJ_NULL;
    size_t before = tlspolicy_step_out();
    nlr_buf_t nlr;
    if (nlr_push(&nlr) == 0) {
        mp_obj_t answer = mp_call_function_1(client->signer, mp_obj_new_bytes(hash, TLSPOLICY_HASH_BYTES));
        mp_buffer_info_t der;
        mp_get_buffer_raise(answer, &der, MP_BUFFER_READ);
        if (!tlspolicy_der_to_raw(der.buf, der.len, raw)) {
            mp_raise_ValueError(MP_ERROR_TEXT("the signer's answer is no DER signature of P-256"));
        }
        nlr_pop();
    } else {
        raised = MP_OBJ_FROM_PTR(nlr.ret_val);
    }
    bool alive = tlspolicy_step_in(connection, before, raised);
    return alive && raised == MP_OBJ_NULL ? 0 : MBEDTLS_ERR_PK_KEY_INVALID_FORMAT;
}

int __wrap_mbedtls_ecdsa_write_signature(mbedtls_ecdsa_context *key, mbedtls_md_type_t md,
    const unsigned char *hash, size_t hash_len, unsigned char *sig, size_t sig_size, size_t *sig_len,
    int (*random)(void *, unsigned char *, size_t), void *generator) {
    tlspolicy_own_t *own;
    void *connection = tlspolicy_in_handshake(&own);
    if (connection == NULL || own == NULL || key != mbedtls_pk_ec(own->chain.pk)) {
        return __real_mbedtls_ecdsa_write_signature(key, md, hash, hash_len, sig, sig_size, sig_len,
            random, generator);
    }
    // Of a longer hash ECDSA takes the leftmost bytes, as many as the curve's order has.
    if (hash_len < TLSPOLICY_HASH_BYTES || sig_size < TLSPOLICY_DER_SIGNATURE_BYTES) {
        return MBEDTLS_ERR_ECP_BAD_INPUT_DATA;
    }
    uint8_t raw[TLSPOLICY_RAW_SIGNATURE_BYTES];
    int ret = own->slot == NO_SLOT ? sign_with_signer(connection, own->number, hash, raw)
        : sign_with_slot(own, hash, raw);
    if (ret == 0) {
        *sig_len = tlspolicy_raw_to_der(raw, sig);
    }
    return ret;
}

// ---- the Python side

// At a soft reset, when the whole heap is swept: nothing may be kept of it.
static mp_obj_t client_del(mp_obj_t self) {
    if (MP_STATE_VM(tlspolicy_client) == MP_OBJ_TO_PTR(self)) {
        MP_STATE_VM(tlspolicy_client) = NULL;
    }
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_1(client_del_obj, client_del);

static const mp_rom_map_elem_t client_locals_table[] = {
    { MP_ROM_QSTR(MP_QSTR___del__), MP_ROM_PTR(&client_del_obj) },
};
static MP_DEFINE_CONST_DICT(client_locals, client_locals_table);

static MP_DEFINE_CONST_OBJ_TYPE(
    client_type, MP_QSTR_client, MP_TYPE_FLAG_NONE, locals_dict, &client_locals);

static TLSPOLICY_NORETURN void raise_chain(int ret) {
    if (tlspolicy_out_of_memory(ret)) {
        mp_raise_OSError(MP_ENOMEM);
    }
    if (ret == MBEDTLS_ERR_ECP_FEATURE_UNAVAILABLE) {
        mp_raise_ValueError(MP_ERROR_TEXT("the certificate's key is not one of P-256"));
    }
    mp_raise_ValueError(MP_ERROR_TEXT("a certificate cannot be read"));
}

// Raises unless the chain can be read, can be sent, and is for the key in the slot.
static void check_chain(mp_obj_t chain, uint8_t slot) {
    mp_buffer_info_t der;
    mp_get_buffer_raise(chain, &der, MP_BUFFER_READ);
    tlspolicy_own_t *own;
    int ret = read_chain(der.buf, der.len, &own);
    if (ret != 0) {
        raise_chain(ret);
    }
    bool fits = own->message <= MAX_MESSAGE;
    int err = ESP_OK;
    bool same = true;
    if (slot != NO_SLOT) {
        tlspolicy_key_t key;
        err = tlspolicy_key_load(slot, &key);
        same = memcmp(key.point, own->point, sizeof(key.point)) == 0;
        mbedtls_platform_zeroize(&key, sizeof(key));
    }
    tlspolicy_own_free(own);
    if (err != ESP_OK) {
        tlspolicy_raise_store(err);
    }
    if (!same) {
        mp_raise_ValueError(MP_ERROR_TEXT("the certificate is for another key"));
    }
    if (!fits) {
        mp_raise_ValueError(MP_ERROR_TEXT("the chain is longer than 4 KiB"));
    }
}

static mp_obj_t client(size_t n_args, const mp_obj_t *args) {
    static uint32_t number;
    if (n_args == 0) {
        return mp_obj_new_bool(MP_STATE_VM(tlspolicy_client) != NULL);
    }
    if (args[0] == mp_const_none) {
        MP_STATE_VM(tlspolicy_client) = NULL;
        return mp_const_none;
    }
    if (n_args != 2) {
        mp_raise_TypeError(MP_ERROR_TEXT("client needs a chain, and a slot or a signer"));
    }
    bool external = !mp_obj_is_small_int(args[1]);
    if (external && !mp_obj_is_callable(args[1])) {
        mp_raise_TypeError(MP_ERROR_TEXT("client needs a chain, and a slot or a signer"));
    }
    uint8_t slot = external ? NO_SLOT : (uint8_t)tlspolicy_slot(args[1]);
    check_chain(args[0], slot);
    mp_buffer_info_t der;
    mp_get_buffer_raise(args[0], &der, MP_BUFFER_READ);
    // Bytes cannot be changed afterwards.
    mp_obj_t kept = mp_obj_is_exact_type(args[0], &mp_type_bytes) ? args[0]
        : mp_obj_new_bytes(der.buf, der.len);
    client_t *next = mp_obj_malloc_with_finaliser(client_t, &client_type);
    next->chain = kept;
    next->signer = external ? args[1] : mp_const_none;
    next->slot = slot;
    next->number = ++number;
    MP_STATE_VM(tlspolicy_client) = next;
    return mp_const_none;
}
MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(tlspolicy_client_obj, 0, 2, client);
