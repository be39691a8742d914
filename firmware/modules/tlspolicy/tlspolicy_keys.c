// SPDX-License-Identifier: MIT
// The device's keys as Python sees them: it can have one made, use it, and erase it.
//
// Owns the Python side of the slots. A private key is in RAM only while a call works with it, and
// is wiped before the call ends. Never gives one out, and never puts one into the MicroPython heap.

#include <string.h>

#include "py/mperrno.h"
#include "py/unicode.h"

#include "tlspolicy_internal.h"

#include "mbedtls/asn1.h"
#include "mbedtls/platform_util.h"
#include "mbedtls/sha256.h"

#include "nvs.h"

unsigned tlspolicy_slot(mp_obj_t slot) {
    mp_int_t number = mp_obj_is_small_int(slot) ? MP_OBJ_SMALL_INT_VALUE(slot) : -1;
    if (number < 0 || number >= TLSPOLICY_SLOTS) {
        mp_raise_ValueError(MP_ERROR_TEXT("slot must be 0 to 7"));
    }
    return (unsigned)number;
}

// The bytes of an argument that must have a certain length.
static const uint8_t *exactly(mp_obj_t object, size_t size) {
    mp_buffer_info_t bytes;
    mp_get_buffer_raise(object, &bytes, MP_BUFFER_READ);
    if (bytes.len != size) {
        mp_raise_msg_varg(&mp_type_ValueError, MP_ERROR_TEXT("must have %u bytes"), (unsigned)size);
    }
    return bytes.buf;
}

// ---- making, showing, erasing

static mp_obj_t key_new(size_t n_args, const mp_obj_t *args) {
    unsigned slot = tlspolicy_slot(args[0]);
    bool overwrite = n_args == 2 && mp_obj_is_true(args[1]);
    tlspolicy_key_t key;
    int err = tlspolicy_key_load(slot, &key);
    mbedtls_platform_zeroize(&key, sizeof(key));
    // A key that cannot be read may be there all the same.
    if (!overwrite && err != ESP_ERR_NVS_NOT_FOUND) {
        if (err != ESP_OK && err != ESP_ERR_NVS_INVALID_LENGTH) {
            tlspolicy_raise_store(err);
        }
        mp_raise_OSError(MP_EEXIST);
    }
    int ret = tlspolicy_ec_make(&key);
    err = ret == 0 ? tlspolicy_key_save(slot, &key) : ESP_OK;
    mbedtls_platform_zeroize(&key, sizeof(key));
    if (ret != 0) {
        tlspolicy_raise_ec(ret);
    }
    if (err != ESP_OK) {
        tlspolicy_raise_store(err);
    }
    return mp_const_none;
}
MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(tlspolicy_key_new_obj, 1, 2, key_new);

static mp_obj_t key_public(mp_obj_t slot_in) {
    unsigned slot = tlspolicy_slot(slot_in);
    uint8_t point[TLSPOLICY_POINT_BYTES];
    tlspolicy_key_t key;
    int err = tlspolicy_key_load(slot, &key);
    memcpy(point, key.point, sizeof(point));
    mbedtls_platform_zeroize(&key, sizeof(key));
    if (err == ESP_ERR_NVS_NOT_FOUND) {
        return mp_const_none;
    }
    if (err != ESP_OK) {
        tlspolicy_raise_store(err);
    }
    return mp_obj_new_bytes(point, sizeof(point));
}
MP_DEFINE_CONST_FUN_OBJ_1(tlspolicy_key_public_obj, key_public);

static mp_obj_t key_erase(mp_obj_t slot) {
    int err = tlspolicy_key_remove(tlspolicy_slot(slot));
    if (err != ESP_OK) {
        tlspolicy_raise_store(err);
    }
    return mp_const_none;
}
MP_DEFINE_CONST_FUN_OBJ_1(tlspolicy_key_erase_obj, key_erase);

// ---- using

// What went wrong first: in the store, or in the arithmetic. Nothing is held any more.
static void check(int err, int ret) {
    if (err != ESP_OK) {
        tlspolicy_raise_store(err);
    }
    if (ret != 0) {
        tlspolicy_raise_ec(ret);
    }
}

static mp_obj_t key_sign(mp_obj_t slot_in, mp_obj_t message_in) {
    unsigned slot = tlspolicy_slot(slot_in);
    mp_buffer_info_t message;
    mp_get_buffer_raise(message_in, &message, MP_BUFFER_READ);
    uint8_t hash[TLSPOLICY_HASH_BYTES], raw[TLSPOLICY_RAW_SIGNATURE_BYTES];
    int ret = mbedtls_sha256(message.buf, message.len, hash, 0);
    tlspolicy_key_t key;
    int err = tlspolicy_key_load(slot, &key);
    if (err == ESP_OK && ret == 0) {
        ret = tlspolicy_ec_sign(&key, hash, raw);
    }
    mbedtls_platform_zeroize(&key, sizeof(key));
    check(err, ret);
    return mp_obj_new_bytes(raw, sizeof(raw));
}
MP_DEFINE_CONST_FUN_OBJ_2(tlspolicy_key_sign_obj, key_sign);

static mp_obj_t key_agree(mp_obj_t slot_in, mp_obj_t point_in) {
    unsigned slot = tlspolicy_slot(slot_in);
    const uint8_t *point = exactly(point_in, TLSPOLICY_POINT_BYTES);
    // Computed where it is handed out: no copy stays on the stack, even where memory ends.
    vstr_t secret;
    vstr_init_len(&secret, TLSPOLICY_SCALAR_BYTES);
    tlspolicy_key_t key;
    int ret = 0;
    int err = tlspolicy_key_load(slot, &key);
    if (err == ESP_OK) {
        ret = tlspolicy_ec_agree(&key, point, (uint8_t *)secret.buf);
    }
    mbedtls_platform_zeroize(&key, sizeof(key));
    check(err, ret);
    return mp_obj_new_bytes_from_vstr(&secret);
}
MP_DEFINE_CONST_FUN_OBJ_2(tlspolicy_key_agree_obj, key_agree);

// ---- requests and certificates

static int sign_with_key(void *key, const uint8_t hash[TLSPOLICY_HASH_BYTES],
    uint8_t raw[TLSPOLICY_RAW_SIGNATURE_BYTES]) {
    return tlspolicy_ec_sign(key, hash, raw);
}

static void take_name(tlspolicy_paper_t *paper, mp_obj_t name) {
    paper->name = mp_obj_str_get_data(name, &paper->name_len);
    if (!mp_obj_is_str(name) || paper->name_len == 0 || paper->name_len > TLSPOLICY_NAME_BYTES
        || memchr(paper->name, '\0', paper->name_len) != NULL) {
        mp_raise_ValueError(MP_ERROR_TEXT("common name must be a str of 1 to 128 bytes"));
    }
}

static mp_obj_t write_paper(unsigned slot, tlspolicy_paper_t *paper) {
    uint8_t buffer[TLSPOLICY_DER_BYTES];
    tlspolicy_key_t key;
    int ret = 0;
    int err = tlspolicy_key_load(slot, &key);
    if (err == ESP_OK) {
        paper->point = key.point;
        paper->sign = sign_with_key;
        paper->context = &key;
        ret = tlspolicy_der_write(paper, buffer);
    }
    mbedtls_platform_zeroize(&key, sizeof(key));
    check(err, ret < 0 ? ret : 0);
    return mp_obj_new_bytes(buffer + sizeof(buffer) - ret, (size_t)ret);
}

static mp_obj_t key_csr(mp_obj_t slot_in, mp_obj_t name) {
    unsigned slot = tlspolicy_slot(slot_in);
    tlspolicy_paper_t paper = { 0 };
    take_name(&paper, name);
    return write_paper(slot, &paper);
}
MP_DEFINE_CONST_FUN_OBJ_2(tlspolicy_key_csr_obj, key_csr);

static int digits(const char *text, size_t count) {
    int value = 0;
    for (size_t i = 0; i < count; ++i) {
        value = value * 10 + text[i] - '0';
    }
    return value;
}

// "YYYYMMDDHHMMSS": a day that the calendar has (but 30 February is the caller's affair).
static const char *take_date(mp_obj_t object) {
    size_t len;
    const char *date = mp_obj_str_get_data(object, &len);
    bool good = mp_obj_is_str(object) && len == TLSPOLICY_DATE_BYTES;
    for (size_t i = 0; good && i < len; ++i) {
        good = date[i] >= '0' && date[i] <= '9';
    }
    if (good) {
        int month = digits(date + 4, 2), day = digits(date + 6, 2);
        good = month >= 1 && month <= 12 && day >= 1 && day <= 31 && digits(date + 8, 2) < 24
            && digits(date + 10, 2) < 60 && digits(date + 12, 2) < 60;
    }
    if (!good) {
        mp_raise_ValueError(MP_ERROR_TEXT("a date must be YYYYMMDDHHMMSS"));
    }
    return date;
}

static mp_obj_t self_signed(size_t n_args, const mp_obj_t *args) {
    (void)n_args;
    unsigned slot = tlspolicy_slot(args[0]);
    tlspolicy_paper_t paper = { 0 };
    take_name(&paper, args[1]);
    paper.not_before = take_date(args[2]);
    paper.not_after = take_date(args[3]);
    if (memcmp(paper.not_before, paper.not_after, TLSPOLICY_DATE_BYTES) > 0) {
        mp_raise_ValueError(MP_ERROR_TEXT("the certificate would end before it begins"));
    }
    int ret = tlspolicy_ec_random(paper.serial, sizeof(paper.serial));
    if (ret != 0) {
        tlspolicy_raise_ec(ret);
    }
    // Positive, and of this length.
    paper.serial[0] = (paper.serial[0] & 0x3f) | 0x40;
    return write_paper(slot, &paper);
}
MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(tlspolicy_self_signed_obj, 4, 4, self_signed);

// ---- verifying

static mp_obj_t verify(mp_obj_t point_in, mp_obj_t message_in, mp_obj_t signature_in) {
    const uint8_t *point = exactly(point_in, TLSPOLICY_POINT_BYTES);
    mp_buffer_info_t message, signature;
    mp_get_buffer_raise(message_in, &message, MP_BUFFER_READ);
    mp_get_buffer_raise(signature_in, &signature, MP_BUFFER_READ);
    uint8_t hash[TLSPOLICY_HASH_BYTES], raw[TLSPOLICY_RAW_SIGNATURE_BYTES];
    int ret = mbedtls_sha256(message.buf, message.len, hash, 0);
    bool good = false;
    if (ret == 0 && signature.len == sizeof(raw)) {
        ret = tlspolicy_ec_verify(point, hash, signature.buf);
        good = ret == 0;
    }
    // Very rarely DER has as many bytes.
    if ((ret == 0 || ret == MBEDTLS_ERR_ECP_VERIFY_FAILED) && !good) {
        ret = tlspolicy_der_to_raw(signature.buf, signature.len, raw)
            ? tlspolicy_ec_verify(point, hash, raw) : tlspolicy_ec_check_point(point);
        good = ret == 0 && tlspolicy_der_to_raw(signature.buf, signature.len, raw);
    }
    if (ret != 0 && ret != MBEDTLS_ERR_ECP_VERIFY_FAILED) {
        tlspolicy_raise_ec(ret);
    }
    return mp_obj_new_bool(good);
}
MP_DEFINE_CONST_FUN_OBJ_3(tlspolicy_verify_obj, verify);
