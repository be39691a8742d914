// SPDX-License-Identifier: MIT
// What tlspolicy needs of the mbedtls configuration, on every port.
//
// Owns the record and buffer sizes, and what of a handshake stays in memory. On unix mbedtls_config_outpost.h includes it last; on
// ESP32 it is mbedtls's MBEDTLS_USER_CONFIG_FILE. Never turns a cipher or a check off.
#ifndef OUTPOST_TLSPOLICY_CONFIG_H
#define OUTPOST_TLSPOLICY_CONFIG_H

// <stddef.h> alone: mbedtls reads this before its own headers.
#include <stddef.h>

#ifndef MBEDTLS_SSL_MAX_FRAGMENT_LENGTH
#define MBEDTLS_SSL_MAX_FRAGMENT_LENGTH
#endif
#ifndef MBEDTLS_SSL_VARIABLE_BUFFER_LENGTH
#define MBEDTLS_SSL_VARIABLE_BUFFER_LENGTH
#endif
#ifndef MBEDTLS_SSL_EXTENDED_MASTER_SECRET
#define MBEDTLS_SSL_EXTENDED_MASTER_SECRET
#endif
#ifndef MBEDTLS_SSL_ENCRYPT_THEN_MAC
#define MBEDTLS_SSL_ENCRYPT_THEN_MAC
#endif
// A session may be offered again, by the ticket that the server gave or by its id.
#ifndef MBEDTLS_SSL_SESSION_TICKETS
#define MBEDTLS_SSL_SESSION_TICKETS
#endif
// Roots are asked for when they are needed, not loaded.
#ifndef MBEDTLS_X509_TRUSTED_CERTIFICATE_CALLBACK
#define MBEDTLS_X509_TRUSTED_CERTIFICATE_CALLBACK
#endif
// The server's certificate goes with the handshake (1.5 KB): the SSLSocket of MicroPython then
// has no getpeercert(). Its dates and its root are in tlspolicy.last().
#undef MBEDTLS_SSL_KEEP_PEER_CERTIFICATE

// The sizes are variables, so that each connection begins with the room that it needs. The
// preprocessor reads a name it does not know as 0, so mbedtls's own limit checks still pass;
// tlspolicy.c keeps the limits. It alone writes them.
extern size_t tlspolicy_in_length;
extern size_t tlspolicy_out_length;
#undef MBEDTLS_SSL_IN_CONTENT_LEN
#undef MBEDTLS_SSL_OUT_CONTENT_LEN
#define MBEDTLS_SSL_IN_CONTENT_LEN tlspolicy_in_length
#define MBEDTLS_SSL_OUT_CONTENT_LEN tlspolicy_out_length

#endif
