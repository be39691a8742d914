// SPDX-License-Identifier: MIT
// Certificates as Python sees them: what one says, and whether each of a chain signed the one before.
//
// Owns nothing between two calls. Judges no dates: those are in what it answers. Never trusts:
// that is for the handshake.

#include <string.h>

#include "py/mperrno.h"
#include "py/unicode.h"

#include "tlspolicy_internal.h"

#include "mbedtls/asn1.h"
#include "mbedtls/md.h"
#include "mbedtls/oid.h"
#include "mbedtls/platform.h"
#include "mbedtls/sha256.h"

#define MAX_CHAIN (6)

static const char unreadable[] = "a certificate cannot be read";

static mbedtls_x509_crt *read_one(const uint8_t *der, size_t len, int *ret) {
    mbedtls_x509_crt *crt = mbedtls_calloc(1, sizeof(*crt));
    if (crt == NULL) {
        *ret = MBEDTLS_ERR_X509_ALLOC_FAILED;
        return NULL;
    }
    mbedtls_x509_crt_init(crt);
    tlspolicy_memory_ended();
    *ret = tlspolicy_der_length(der, len) == len ? mbedtls_x509_crt_parse_der_nocopy(crt, der, len)
        : MBEDTLS_ERR_X509_INVALID_FORMAT;
    if (*ret != 0 && tlspolicy_memory_ended()) {
        *ret = MBEDTLS_ERR_X509_ALLOC_FAILED;
    }
    return crt;
}

static void free_one(mbedtls_x509_crt *crt) {
    if (crt != NULL) {
        mbedtls_x509_crt_free(crt);
        mbedtls_free(crt);
    }
}

static TLSPOLICY_NORETURN void raise_unreadable(int ret) {
    if (tlspolicy_out_of_memory(ret)) {
        mp_raise_OSError(MP_ENOMEM);
    }
    mp_raise_msg_varg(&mp_type_ValueError, MP_ERROR_TEXT("%s"), unreadable);
}

// The signature at the end of a certificate: what follows its body and the algorithm.
static bool find_signature(const mbedtls_x509_crt *crt, const uint8_t **signature, size_t *len) {
    uint8_t *at = crt->tbs.p + crt->tbs.len;
    const uint8_t *end = crt->raw.p + crt->raw.len;
    mbedtls_asn1_buf oid, parameters;
    if (mbedtls_asn1_get_alg(&at, end, &oid, &parameters) != 0
        || mbedtls_asn1_get_bitstring_null(&at, end, len) != 0) {
        return false;
    }
    *signature = at;
    return true;
}

// 0: `issuer` holds the key that signed `crt`.
static int signed_by(const mbedtls_x509_crt *crt, mbedtls_x509_crt *issuer) {
    mbedtls_md_type_t md;
    mbedtls_pk_type_t kind;
    const uint8_t *signature;
    size_t len;
    uint8_t hash[MBEDTLS_MD_MAX_SIZE];
    if (mbedtls_oid_get_sig_alg(&crt->sig_oid, &md, &kind) != 0 || !find_signature(crt, &signature, &len)
        || (md != MBEDTLS_MD_SHA256 && md != MBEDTLS_MD_SHA384 && md != MBEDTLS_MD_SHA512)
        || !mbedtls_pk_can_do(&issuer->pk, kind)) {
        return MBEDTLS_ERR_X509_SIG_MISMATCH;
    }
    const mbedtls_md_info_t *info = mbedtls_md_info_from_type(md);
    int ret = mbedtls_md(info, crt->tbs.p, crt->tbs.len, hash);
    return ret != 0 ? ret
           : mbedtls_pk_verify(&issuer->pk, md, hash, mbedtls_md_get_size(info), signature, len);
}

static bool names_match(const mbedtls_x509_crt *crt, const mbedtls_x509_crt *issuer) {
    const mbedtls_x509_buf *a = &crt->issuer_raw, *b = &issuer->subject_raw;
    return a->len == b->len && memcmp(a->p, b->p, a->len) == 0;
}

// The common name; p is NULL where there is none, or none in a form that a str takes.
static mbedtls_x509_buf common_name(const mbedtls_x509_name *name) {
    const mbedtls_x509_buf none = { 0 };
    for (; name != NULL; name = name->next) {
        if (MBEDTLS_OID_CMP(MBEDTLS_OID_AT_CN, &name->oid) == 0) {
            int tag = name->val.tag;
            bool text = tag == MBEDTLS_ASN1_UTF8_STRING || tag == MBEDTLS_ASN1_PRINTABLE_STRING
                || tag == MBEDTLS_ASN1_IA5_STRING;
            return text && utf8_check(name->val.p, name->val.len) ? name->val : none;
        }
    }
    return none;
}

// Names and serial number lie in the caller's bytes.
typedef struct {
    mbedtls_x509_buf name, issuer, serial;
    char not_before[TLSPOLICY_DATE_BYTES], not_after[TLSPOLICY_DATE_BYTES];
    uint8_t point[TLSPOLICY_POINT_BYTES];
    bool p256, authority, self_signed;
} facts_t;

static void write_date(const mbedtls_x509_time *t, char text[TLSPOLICY_DATE_BYTES]) {
    const int parts[] = { t->year / 100, t->year % 100, t->mon, t->day, t->hour, t->min, t->sec };
    for (size_t i = 0; i < MP_ARRAY_SIZE(parts); ++i) {
        text[2 * i] = (char)('0' + parts[i] / 10 % 10);
        text[2 * i + 1] = (char)('0' + parts[i] % 10);
    }
}

static mp_obj_t name_or_none(const mbedtls_x509_buf *name) {
    return name->p == NULL ? mp_const_none : mp_obj_new_str((const char *)name->p, name->len);
}

static mp_obj_t certificate(mp_obj_t der_in) {
    mp_buffer_info_t der;
    mp_get_buffer_raise(der_in, &der, MP_BUFFER_READ);
    int ret;
    mbedtls_x509_crt *crt = read_one(der.buf, der.len, &ret);
    if (ret != 0) {
        free_one(crt);
        raise_unreadable(ret);
    }
    facts_t facts = { 0 };
    facts.name = common_name(&crt->subject);
    facts.issuer = common_name(&crt->issuer);
    facts.serial = crt->serial;
    write_date(&crt->valid_from, facts.not_before);
    write_date(&crt->valid_to, facts.not_after);
    facts.p256 = tlspolicy_ec_point_of(&crt->pk, facts.point) == 0;
    facts.authority = mbedtls_x509_crt_get_ca_istrue(crt) > 0;
    if (names_match(crt, crt)) {
        ret = signed_by(crt, crt);
        facts.self_signed = ret == 0;
    }
    free_one(crt);
    if (tlspolicy_out_of_memory(ret) || (ret != 0 && tlspolicy_memory_ended())) {
        mp_raise_OSError(MP_ENOMEM);
    }
    mp_obj_t dict = mp_obj_new_dict(8);
    mp_obj_dict_store(dict, MP_OBJ_NEW_QSTR(MP_QSTR_cn), name_or_none(&facts.name));
    mp_obj_dict_store(dict, MP_OBJ_NEW_QSTR(MP_QSTR_issuer_cn), name_or_none(&facts.issuer));
    mp_obj_dict_store(dict, MP_OBJ_NEW_QSTR(MP_QSTR_not_before),
        mp_obj_new_str(facts.not_before, TLSPOLICY_DATE_BYTES));
    mp_obj_dict_store(dict, MP_OBJ_NEW_QSTR(MP_QSTR_not_after),
        mp_obj_new_str(facts.not_after, TLSPOLICY_DATE_BYTES));
    mp_obj_dict_store(dict, MP_OBJ_NEW_QSTR(MP_QSTR_point),
        facts.p256 ? mp_obj_new_bytes(facts.point, sizeof(facts.point)) : mp_const_none);
    mp_obj_dict_store(dict, MP_OBJ_NEW_QSTR(MP_QSTR_ca), mp_obj_new_bool(facts.authority));
    mp_obj_dict_store(dict, MP_OBJ_NEW_QSTR(MP_QSTR_serial),
        mp_obj_new_bytes(facts.serial.p, facts.serial.len));
    mp_obj_dict_store(dict, MP_OBJ_NEW_QSTR(MP_QSTR_self_signed), mp_obj_new_bool(facts.self_signed));
    return dict;
}
MP_DEFINE_CONST_FUN_OBJ_1(tlspolicy_certificate_obj, certificate);

// ---- chains

#define LEAST_RSA_BITS (2048)
#define LEAST_EC_BITS (256)

typedef enum {
    GOOD, UNREADABLE, TOO_LONG, NOT_ISSUER, NO_AUTHORITY, WEAK_KEY, BAD_SIGNATURE, NO_MEMORY
} verdict_t;

// As mbedtls_x509_crt_profile_default has it for the handshake.
static bool is_weak(const mbedtls_pk_context *key) {
    bool rsa = mbedtls_pk_can_do(key, MBEDTLS_PK_RSA);
    return mbedtls_pk_get_bitlen(key) < (rsa ? LEAST_RSA_BITS : LEAST_EC_BITS);
}

static verdict_t judge(const mbedtls_x509_crt *crt, mbedtls_x509_crt *issuer) {
    if (!names_match(crt, issuer)) {
        return NOT_ISSUER;
    }
    if (mbedtls_x509_crt_get_ca_istrue(issuer) <= 0
        || mbedtls_x509_crt_check_key_usage(issuer, MBEDTLS_X509_KU_KEY_CERT_SIGN) != 0) {
        return NO_AUTHORITY;
    }
    if (is_weak(&issuer->pk)) {
        return WEAK_KEY;
    }
    int ret = signed_by(crt, issuer);
    bool memory = tlspolicy_out_of_memory(ret) || (ret != 0 && tlspolicy_memory_ended());
    return ret == 0 ? GOOD : memory ? NO_MEMORY : BAD_SIGNATURE;
}

// Two of them are in memory at a time.
static verdict_t walk(const uint8_t *der, size_t len) {
    mbedtls_x509_crt *before = NULL;
    verdict_t verdict = len == 0 ? UNREADABLE : GOOD;
    for (int count = 1; verdict == GOOD && len > 0; ++count) {
        size_t size = tlspolicy_der_length(der, len);
        if (size == 0 || count > MAX_CHAIN) {
            verdict = size == 0 ? UNREADABLE : TOO_LONG;
            break;
        }
        int ret;
        mbedtls_x509_crt *crt = read_one(der, size, &ret);
        if (ret != 0) {
            verdict = tlspolicy_out_of_memory(ret) ? NO_MEMORY : UNREADABLE;
        } else if (before != NULL) {
            verdict = judge(before, crt);
        }
        free_one(before);
        before = crt;
        der += size;
        len -= size;
    }
    free_one(before);
    return verdict;
}

static mp_obj_t chain_ok(mp_obj_t chain_in) {
    mp_buffer_info_t chain;
    mp_get_buffer_raise(chain_in, &chain, MP_BUFFER_READ);
    switch (walk(chain.buf, chain.len)) {
        case GOOD:
            return mp_const_none;
        case NO_MEMORY:
            mp_raise_OSError(MP_ENOMEM);
        case TOO_LONG:
            mp_raise_ValueError(MP_ERROR_TEXT("the chain has more than 6 certificates"));
        case NOT_ISSUER:
            mp_raise_ValueError(MP_ERROR_TEXT(
                "a certificate of the chain was not issued by the next one: put the device's first, "
                "then the one that signed it"));
        case NO_AUTHORITY:
            mp_raise_ValueError(MP_ERROR_TEXT(
                "a certificate of the chain signed another but is no certificate authority"));
        case WEAK_KEY:
            mp_raise_ValueError(MP_ERROR_TEXT(
                "a key in the chain is too weak: RSA needs 2048 bits, a curve 256"));
        case BAD_SIGNATURE:
            mp_raise_ValueError(MP_ERROR_TEXT(
                "a signature in the chain is not by the key of the next certificate"));
        default:
            mp_raise_msg_varg(&mp_type_ValueError, MP_ERROR_TEXT("%s"), unreadable);
    }
}
MP_DEFINE_CONST_FUN_OBJ_1(tlspolicy_chain_ok_obj, chain_ok);
