// SPDX-License-Identifier: MIT
// P-256 for the keys of the device: making, signing, agreeing, verifying.
//
// Owns nothing between two calls: each takes what it works with from the C heap, with a random
// generator of its own seeded by mbedtls's entropy source (on ESP32 the hardware's generator), and
// wipes and frees it. Never allocates in the MicroPython heap, never raises while it holds a key.

#include <string.h>

#include "py/mperrno.h"

#include "tlspolicy_internal.h"

#include "mbedtls/ctr_drbg.h"
#include "mbedtls/ecdh.h"
#include "mbedtls/ecdsa.h"
#include "mbedtls/entropy.h"
#include "mbedtls/error.h"
#include "mbedtls/pk.h"
#include "mbedtls/platform.h"
#include "mbedtls/platform_util.h"

#if defined(MBEDTLS_USE_PSA_CRYPTO)
#error "tlspolicy signs in mbedtls_ecdsa_write_signature: build Mbed TLS without MBEDTLS_USE_PSA_CRYPTO"
#endif

#define TRY(call) do { ret = (call); if (ret != 0) { goto end; } } while (0)

typedef struct {
    mbedtls_entropy_context entropy;
    mbedtls_ctr_drbg_context random;
    mbedtls_ecp_group group;
    mbedtls_ecp_point point;
    mbedtls_mpi scalar, r, s;
} work_t;

static void end_work(work_t *w) {
    if (w == NULL) {
        return;
    }
    mbedtls_mpi_free(&w->s);
    mbedtls_mpi_free(&w->r);
    mbedtls_mpi_free(&w->scalar);
    mbedtls_ecp_point_free(&w->point);
    mbedtls_ecp_group_free(&w->group);
    mbedtls_ctr_drbg_free(&w->random);
    mbedtls_entropy_free(&w->entropy);
    mbedtls_platform_zeroize(w, sizeof(*w));
    mbedtls_free(w);
}

static int begin_work(work_t **work, bool random) {
    static const unsigned char purpose[] = "outpost keys";
    int ret = 0;
    tlspolicy_memory_ended();
    work_t *w = mbedtls_calloc(1, sizeof(*w));
    *work = w;
    if (w == NULL) {
        return MBEDTLS_ERR_ECP_ALLOC_FAILED;
    }
    mbedtls_entropy_init(&w->entropy);
    mbedtls_ctr_drbg_init(&w->random);
    mbedtls_ecp_group_init(&w->group);
    mbedtls_ecp_point_init(&w->point);
    mbedtls_mpi_init(&w->scalar);
    mbedtls_mpi_init(&w->r);
    mbedtls_mpi_init(&w->s);
    if (random) {
        TRY(mbedtls_ctr_drbg_seed(&w->random, mbedtls_entropy_func, &w->entropy, purpose,
            sizeof(purpose) - 1));
    }
    TRY(mbedtls_ecp_group_load(&w->group, MBEDTLS_ECP_DP_SECP256R1));
end:
    return ret;
}

static int read_scalar(work_t *w, const tlspolicy_key_t *key) {
    int ret = mbedtls_mpi_read_binary(&w->scalar, key->scalar, sizeof(key->scalar));
    return ret != 0 ? ret : mbedtls_ecp_check_privkey(&w->group, &w->scalar);
}

// Only a point that is on the curve, and not at infinity, is ever computed with.
static int read_point(work_t *w, const uint8_t point[TLSPOLICY_POINT_BYTES]) {
    if (point[0] != 4) {
        return MBEDTLS_ERR_ECP_INVALID_KEY;
    }
    int ret = mbedtls_ecp_point_read_binary(&w->group, &w->point, point, TLSPOLICY_POINT_BYTES);
    return ret != 0 ? ret : mbedtls_ecp_check_pubkey(&w->group, &w->point);
}

int tlspolicy_ec_random(void *out, size_t len) {
    work_t *w;
    int ret = begin_work(&w, true);
    if (ret == 0) {
        ret = mbedtls_ctr_drbg_random(&w->random, out, len);
    }
    end_work(w);
    return ret;
}

int tlspolicy_ec_make(tlspolicy_key_t *key) {
    work_t *w;
    size_t len;
    int ret;
    TRY(begin_work(&w, true));
    TRY(mbedtls_ecp_gen_keypair(&w->group, &w->scalar, &w->point, mbedtls_ctr_drbg_random,
        &w->random));
    TRY(mbedtls_mpi_write_binary(&w->scalar, key->scalar, sizeof(key->scalar)));
    TRY(mbedtls_ecp_point_write_binary(&w->group, &w->point, MBEDTLS_ECP_PF_UNCOMPRESSED, &len,
        key->point, sizeof(key->point)));
end:
    end_work(w);
    return ret;
}

int tlspolicy_ec_sign(const tlspolicy_key_t *key, const uint8_t hash[TLSPOLICY_HASH_BYTES],
    uint8_t raw[TLSPOLICY_RAW_SIGNATURE_BYTES]) {
    work_t *w;
    int ret;
    TRY(begin_work(&w, true));
    TRY(read_scalar(w, key));
    TRY(mbedtls_ecdsa_sign(&w->group, &w->r, &w->s, &w->scalar, hash, TLSPOLICY_HASH_BYTES,
        mbedtls_ctr_drbg_random, &w->random));
    TRY(mbedtls_mpi_write_binary(&w->r, raw, 32));
    TRY(mbedtls_mpi_write_binary(&w->s, raw + 32, 32));
end:
    end_work(w);
    return ret;
}

int tlspolicy_ec_agree(const tlspolicy_key_t *key, const uint8_t point[TLSPOLICY_POINT_BYTES],
    uint8_t secret[TLSPOLICY_SCALAR_BYTES]) {
    work_t *w;
    int ret;
    TRY(begin_work(&w, true));
    TRY(read_point(w, point));
    TRY(read_scalar(w, key));
    TRY(mbedtls_ecdh_compute_shared(&w->group, &w->r, &w->point, &w->scalar,
        mbedtls_ctr_drbg_random, &w->random));
    TRY(mbedtls_mpi_write_binary(&w->r, secret, TLSPOLICY_SCALAR_BYTES));
end:
    end_work(w);
    return ret;
}

int tlspolicy_ec_check_point(const uint8_t point[TLSPOLICY_POINT_BYTES]) {
    work_t *w;
    int ret;
    TRY(begin_work(&w, false));
    TRY(read_point(w, point));
end:
    end_work(w);
    return ret;
}

int tlspolicy_ec_verify(const uint8_t point[TLSPOLICY_POINT_BYTES],
    const uint8_t hash[TLSPOLICY_HASH_BYTES], const uint8_t raw[TLSPOLICY_RAW_SIGNATURE_BYTES]) {
    work_t *w;
    int ret;
    TRY(begin_work(&w, false));
    TRY(read_point(w, point));
    TRY(mbedtls_mpi_read_binary(&w->r, raw, 32));
    TRY(mbedtls_mpi_read_binary(&w->s, raw + 32, 32));
    TRY(mbedtls_ecdsa_verify(&w->group, hash, TLSPOLICY_HASH_BYTES, &w->point, &w->r, &w->s));
end:
    end_work(w);
    return ret;
}

int tlspolicy_ec_point_of(const mbedtls_pk_context *pk, uint8_t point[TLSPOLICY_POINT_BYTES]) {
    size_t len;
    if (mbedtls_pk_get_type(pk) != MBEDTLS_PK_ECKEY
        || mbedtls_ecp_keypair_get_group_id(mbedtls_pk_ec(*pk)) != MBEDTLS_ECP_DP_SECP256R1) {
        return MBEDTLS_ERR_ECP_FEATURE_UNAVAILABLE;
    }
    return mbedtls_ecp_write_public_key(mbedtls_pk_ec(*pk), MBEDTLS_ECP_PF_UNCOMPRESSED, &len,
        point, TLSPOLICY_POINT_BYTES);
}

bool tlspolicy_out_of_memory(int code) {
    int low = -(-code & 0x7F);
    return code == MBEDTLS_ERR_X509_ALLOC_FAILED || code == MBEDTLS_ERR_PK_ALLOC_FAILED
           || code == MBEDTLS_ERR_ECP_ALLOC_FAILED || low == MBEDTLS_ERR_ASN1_ALLOC_FAILED
           || low == MBEDTLS_ERR_MPI_ALLOC_FAILED;
}

void tlspolicy_raise_ec(int code) {
    // Without memory mbedtls also says that its source of random numbers failed.
    if (tlspolicy_out_of_memory(code) || tlspolicy_memory_ended()) {
        mp_raise_OSError(MP_ENOMEM);
    }
    if (code == MBEDTLS_ERR_ECP_INVALID_KEY || code == MBEDTLS_ERR_ECP_BAD_INPUT_DATA) {
        mp_raise_ValueError(MP_ERROR_TEXT("not a point of P-256"));
    }
    mp_raise_OSError(code);
}
