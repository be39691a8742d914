// SPDX-License-Identifier: MIT
// What the server says first, in the clear in TLS 1.2: whether it echoed the record size, and how
// large its certificates are.
//
// Owns nothing: the state is its caller's. Takes byte by byte whatever comes. Never judges: what makes
// no sense is left for mbedtls to refuse.

#include "tlspolicy_internal.h"

#include "mbedtls/ssl.h"

// One byte of the body of a ServerHello.
static void hello_byte(tlspolicy_hello_t *hello, uint8_t byte) {
    uint32_t at = hello->at++;
    if (at == 34) {
        // After version and random: a session id of `byte` bytes, the suite, the compression.
        hello->extensions_at = 35 + byte + 3;
    }
    if (hello->extensions_at == 0 || at < hello->extensions_at + 2) {
        return;
    }
    if (hello->extension_have < 4) {
        hello->extension[hello->extension_have++] = byte;
        if (hello->extension_have == 4) {
            hello->extension_left = hello->extension[2] << 8 | hello->extension[3];
            if (hello->extension_left == 0) {
                hello->extension_have = 0;
            }
        }
        return;
    }
    if (hello->extension[0] == 0 && hello->extension[1] == MBEDTLS_TLS_EXT_MAX_FRAGMENT_LENGTH) {
        hello->echoed = byte;
    }
    if (--hello->extension_left == 0) {
        hello->extension_have = 0;
    }
}

static void hello_message_begins(tlspolicy_hello_t *hello) {
    const uint8_t *m = hello->message;
    hello->message_left = (uint32_t)m[1] << 16 | (uint32_t)m[2] << 8 | m[3];
    if (!hello->hello_seen) {
        // Anything but a ServerHello here is for mbedtls to refuse.
        hello->done = m[0] != MBEDTLS_SSL_HS_SERVER_HELLO;
    } else {
        if (m[0] == MBEDTLS_SSL_HS_CERTIFICATE) {
            hello->certificate_size = hello->message_left + 4;
        }
        hello->done = true;
    }
}

void tlspolicy_hello_take(tlspolicy_hello_t *hello, uint8_t byte) {
    if (hello->record_left == 0) {
        hello->record[hello->record_have++] = byte;
        if (hello->record_have == sizeof(hello->record)) {
            hello->record_have = 0;
            hello->record_left = hello->record[3] << 8 | hello->record[4];
            if (hello->record[0] != MBEDTLS_SSL_MSG_HANDSHAKE || hello->record_left == 0) {
                hello->done = true;
            }
        }
        return;
    }
    --hello->record_left;
    if (hello->message_have < sizeof(hello->message)) {
        hello->message[hello->message_have++] = byte;
        if (hello->message_have == sizeof(hello->message)) {
            hello_message_begins(hello);
        }
    } else {
        --hello->message_left;
        hello_byte(hello, byte);
    }
    if (hello->message_have == sizeof(hello->message) && hello->message_left == 0) {
        hello->hello_seen = true;
        hello->message_have = 0;
    }
}

// How many bytes can be read next without reading past what is looked for.
size_t tlspolicy_hello_wants(const tlspolicy_hello_t *hello) {
    if (hello->record_left == 0) {
        return sizeof(hello->record) - hello->record_have;
    }
    size_t wants = hello->message_have < sizeof(hello->message)
        ? sizeof(hello->message) - hello->message_have : hello->message_left;
    return wants < hello->record_left ? wants : hello->record_left;
}
