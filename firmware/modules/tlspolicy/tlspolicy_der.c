// SPDX-License-Identifier: MIT
// What the device writes in DER (requests, self-signed certificates) and the two forms of an ECDSA
// signature.
//
// Owns nothing. Writes backwards, from the end of a buffer, as mbedtls's functions do. Never takes a
// name apart: whatever the common name holds goes in as it is, in UTF-8.

#include <string.h>

#include "tlspolicy_internal.h"

#include "mbedtls/asn1write.h"
#include "mbedtls/sha256.h"

// Adds what `call` writes to the length so far.
#define ADD(call) do { int ret_ = (call); if (ret_ < 0) { return ret_; } len += (size_t)ret_; } while (0)

static const uint8_t ecdsa_with_sha256[] = {
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
};
// SubjectPublicKeyInfo of a P-256 key, up to the point.
static const uint8_t p256_key[] = {
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
};
static const uint8_t common_name[] = { 0x06, 0x03, 0x55, 0x04, 0x03 };
// No authority; for signatures and key agreement; a TLS client.
static const uint8_t extensions[] = {
    0xa3, 0x35, 0x30, 0x33,
    0x30, 0x0c, 0x06, 0x03, 0x55, 0x1d, 0x13, 0x01, 0x01, 0xff, 0x04, 0x02, 0x30, 0x00,
    0x30, 0x0e, 0x06, 0x03, 0x55, 0x1d, 0x0f, 0x01, 0x01, 0xff, 0x04, 0x04, 0x03, 0x02, 0x03, 0x88,
    0x30, 0x13, 0x06, 0x03, 0x55, 0x1d, 0x25, 0x04, 0x0c, 0x30, 0x0a, 0x06, 0x08, 0x2b, 0x06, 0x01,
    0x05, 0x05, 0x07, 0x03, 0x02,
};

#define SEQUENCE (MBEDTLS_ASN1_CONSTRUCTED | MBEDTLS_ASN1_SEQUENCE)
#define SET (MBEDTLS_ASN1_CONSTRUCTED | MBEDTLS_ASN1_SET)
#define TAGGED(n) (MBEDTLS_ASN1_CONTEXT_SPECIFIC | MBEDTLS_ASN1_CONSTRUCTED | (n))

// ---- writing

static int write_head(uint8_t **at, const uint8_t *begin, size_t content, uint8_t tag) {
    size_t len = 0;
    ADD(mbedtls_asn1_write_len(at, begin, content));
    ADD(mbedtls_asn1_write_tag(at, begin, tag));
    return (int)len;
}

// Wraps all that has been written so far (len bytes) into an element.
#define WRAP(tag) ADD(write_head(at, begin, len, tag))

static int write_raw(uint8_t **at, const uint8_t *begin, const uint8_t *bytes, size_t size) {
    return mbedtls_asn1_write_raw_buffer(at, begin, bytes, size);
}

// One common name: SEQUENCE { SET { SEQUENCE { OID, UTF8String } } }.
static int write_name(uint8_t **at, const uint8_t *begin, const tlspolicy_paper_t *paper) {
    size_t len = 0;
    ADD(mbedtls_asn1_write_tagged_string(at, begin, MBEDTLS_ASN1_UTF8_STRING, paper->name,
        paper->name_len));
    ADD(write_raw(at, begin, common_name, sizeof(common_name)));
    WRAP(SEQUENCE);
    WRAP(SET);
    WRAP(SEQUENCE);
    return (int)len;
}

static int write_key(uint8_t **at, const uint8_t *begin, const tlspolicy_paper_t *paper) {
    size_t len = 0;
    ADD(write_raw(at, begin, paper->point, TLSPOLICY_POINT_BYTES));
    ADD(write_raw(at, begin, p256_key, sizeof(p256_key)));
    return (int)len;
}

// Up to 2049 as UTCTime, from then on as GeneralizedTime (RFC 5280).
static int write_time(uint8_t **at, const uint8_t *begin, const char *date) {
    size_t len = 0;
    bool two_digits = memcmp(date, "1950", 4) >= 0 && memcmp(date, "2050", 4) < 0;
    size_t from = two_digits ? 2 : 0;
    ADD(write_raw(at, begin, (const uint8_t *)"Z", 1));
    ADD(write_raw(at, begin, (const uint8_t *)date + from, TLSPOLICY_DATE_BYTES - from));
    WRAP(two_digits ? MBEDTLS_ASN1_UTC_TIME : MBEDTLS_ASN1_GENERALIZED_TIME);
    return (int)len;
}

static int write_validity(uint8_t **at, const uint8_t *begin, const tlspolicy_paper_t *paper) {
    size_t len = 0;
    ADD(write_time(at, begin, paper->not_after));
    ADD(write_time(at, begin, paper->not_before));
    WRAP(SEQUENCE);
    return (int)len;
}

// What is signed of a request (PKCS#10).
static int write_request(uint8_t **at, const uint8_t *begin, const tlspolicy_paper_t *paper) {
    size_t len = 0;
    ADD(write_head(at, begin, 0, TAGGED(0)));       // no attributes
    ADD(write_key(at, begin, paper));
    ADD(write_name(at, begin, paper));
    ADD(mbedtls_asn1_write_int(at, begin, 0));
    WRAP(SEQUENCE);
    return (int)len;
}

static int write_version_3(uint8_t **at, const uint8_t *begin) {
    size_t len = 0;
    ADD(mbedtls_asn1_write_int(at, begin, 2));
    WRAP(TAGGED(0));
    return (int)len;
}

// What is signed of a certificate.
static int write_certificate(uint8_t **at, const uint8_t *begin, const tlspolicy_paper_t *paper) {
    size_t len = 0;
    ADD(write_raw(at, begin, extensions, sizeof(extensions)));
    ADD(write_key(at, begin, paper));
    ADD(write_name(at, begin, paper));
    ADD(write_validity(at, begin, paper));
    ADD(write_name(at, begin, paper));
    ADD(write_raw(at, begin, ecdsa_with_sha256, sizeof(ecdsa_with_sha256)));
    ADD(write_raw(at, begin, paper->serial, sizeof(paper->serial)));
    ADD(write_head(at, begin, sizeof(paper->serial), MBEDTLS_ASN1_INTEGER));
    ADD(write_version_3(at, begin));
    WRAP(SEQUENCE);
    return (int)len;
}

int tlspolicy_der_write(const tlspolicy_paper_t *paper, uint8_t buffer[TLSPOLICY_DER_BYTES]) {
    // The signature comes after what it signs: that is written first, and moved to its place.
    uint8_t *end = buffer + TLSPOLICY_DER_BYTES;
    uint8_t *from = end;
    int body = paper->not_before == NULL ? write_request(&from, buffer, paper)
        : write_certificate(&from, buffer, paper);
    if (body < 0) {
        return body;
    }
    uint8_t hash[TLSPOLICY_HASH_BYTES];
    uint8_t raw[TLSPOLICY_RAW_SIGNATURE_BYTES];
    uint8_t signature[TLSPOLICY_DER_SIGNATURE_BYTES];
    int ret = mbedtls_sha256(from, (size_t)body, hash, 0);
    if (ret == 0) {
        ret = paper->sign(paper->context, hash, raw);
    }
    if (ret != 0) {
        return ret;
    }
    size_t signature_len = tlspolicy_raw_to_der(raw, signature);
    memmove(buffer, from, (size_t)body);
    const uint8_t *begin = buffer + body;
    uint8_t *place = end, **at = &place;
    size_t len = 0;
    ADD(mbedtls_asn1_write_bitstring(at, begin, signature, signature_len * 8));
    ADD(write_raw(at, begin, ecdsa_with_sha256, sizeof(ecdsa_with_sha256)));
    if (place - begin < 0 || (size_t)(place - buffer) < (size_t)body + 4) {
        return MBEDTLS_ERR_ASN1_BUF_TOO_SMALL;
    }
    place -= body;
    memmove(place, buffer, (size_t)body);
    len += (size_t)body;
    begin = buffer;
    WRAP(SEQUENCE);
    return (int)len;
}

// ---- signatures

size_t tlspolicy_raw_to_der(const uint8_t raw[TLSPOLICY_RAW_SIGNATURE_BYTES],
    uint8_t der[TLSPOLICY_DER_SIGNATURE_BYTES]) {
    uint8_t *out = der + 2;
    for (int part = 0; part < 2; ++part) {
        const uint8_t *number = raw + 32 * part;
        size_t size = 32;
        while (size > 1 && *number == 0) {
            ++number;
            --size;
        }
        bool padded = (*number & 0x80) != 0;
        *out++ = MBEDTLS_ASN1_INTEGER;
        *out++ = (uint8_t)(size + padded);
        if (padded) {
            *out++ = 0;
        }
        memcpy(out, number, size);
        out += size;
    }
    der[0] = SEQUENCE;
    der[1] = (uint8_t)(out - der - 2);
    return (size_t)(out - der);
}

bool tlspolicy_der_to_raw(const uint8_t *der, size_t len, uint8_t raw[TLSPOLICY_RAW_SIGNATURE_BYTES]) {
    // So short that no length takes more than one byte.
    if (len < 8 || len > TLSPOLICY_DER_SIGNATURE_BYTES || der[0] != SEQUENCE || der[1] != len - 2) {
        return false;
    }
    const uint8_t *at = der + 2, *end = der + len;
    memset(raw, 0, TLSPOLICY_RAW_SIGNATURE_BYTES);
    for (int part = 0; part < 2; ++part) {
        if (end - at < 3 || at[0] != MBEDTLS_ASN1_INTEGER || at[1] == 0 || at[1] > end - at - 2) {
            return false;
        }
        size_t size = at[1];
        at += 2;
        const uint8_t *number = at;
        at += size;
        if ((number[0] & 0x80) != 0) {
            return false;       // negative
        }
        if (number[0] == 0 && size > 1) {
            if ((number[1] & 0x80) == 0) {
                return false;   // longer than need be
            }
            ++number;
            --size;
        }
        if (size > 32) {
            return false;
        }
        memcpy(raw + 32 * part + 32 - size, number, size);
    }
    return at == end;
}

// ---- reading

size_t tlspolicy_der_length(const uint8_t *der, size_t len) {
    if (len < 2 || der[0] != SEQUENCE) {
        return 0;
    }
    size_t content = der[1], head = 2;
    if (content >= 0x80) {
        size_t bytes = content & 0x7f;
        if (bytes == 0 || bytes > 2 || len < 2 + bytes) {
            return 0;           // of no end, or above 64 KiB
        }
        content = 0;
        for (size_t i = 0; i < bytes; ++i) {
            content = content << 8 | der[2 + i];
        }
        head += bytes;
    }
    return content <= len - head ? head + content : 0;
}
