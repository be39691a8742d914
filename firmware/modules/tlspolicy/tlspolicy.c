// SPDX-License-Identifier: MIT
// tlspolicy: the TLS floor of the device, enforced below Python, and the record size.
//
// The linker hands the calls that MicroPython makes into mbedtls to this file first (--wrap,
// see micropython.mk). So whatever Python code opens a connection, and whatever it sets on
// its context before or after: TLS 1.2 exactly, client only, our cipher suites in our order,
// the server verified and named, and the record size that was asked for.
//
// It owns one small record per connection and per context (C heap, freed with them), the
// settings, the facts of the last handshake and the counters of the TLS stack's memory. It uses
// mbedtls's public interface alone, and keeps nothing in the MicroPython heap.
//
// How a record size becomes small buffers, and why that is safe with every server:
//  1. A connection that asks for a size begins with a small receive buffer.
//  2. The first bytes from the server (its ServerHello and the header of the message after
//     it) are read here before mbedtls sees them. They are in the clear in TLS 1.2.
//  3. If the server did not echo the extension, or its certificates do not fit, the
//     connection is set up again in place with buffers that do: mbedtls writes the same
//     ClientHello once more (same random bytes, same second), this time to nowhere, and
//     goes on with the bytes that were kept. The server notices nothing.
//  4. mbedtls shrinks its buffers at the end of a handshake to the size that was *asked*
//     for. When the server did not agree, the size is taken back before that step.

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "py/mperrno.h"
#include "py/mphal.h"
#include "py/obj.h"
#include "py/runtime.h"

#include "tlspolicy_internal.h"

#include "mbedtls/ctr_drbg.h"
#include "mbedtls/platform.h"
#include "mbedtls/platform_time.h"
#include "mbedtls/platform_util.h"
#include "mbedtls/sha256.h"
#include "mbedtls/ssl.h"
#include "mbedtls/version.h"
#include "mbedtls/x509_crt.h"

#if MBEDTLS_VERSION_NUMBER < 0x03060300
// An older one cannot read a certificate message that is split over several records.
#error "tlspolicy needs Mbed TLS 3.6.3 or later (MicroPython 1.26 or later on ESP32)"
#endif

#define FULL_IN (16384)
#define FULL_OUT (4096)
#define SMALL_IN (4096)
#define SMALL_OUT (2048)
// In force while no connection is being worked on. It is no larger than the send buffer of
// any connection, so that no path into mbedtls can write past one.
#define REST_OUT (512)

#define CONNECTION_MAGIC (0x4f545031u)
#define KEPT_BYTES (320)
#define RANDOM_BYTES (80)

// Sizes of buffers and limits that mbedtls reads instead of constants (tlspolicy_config.h).
size_t tlspolicy_in_length = FULL_IN;
size_t tlspolicy_out_length = REST_OUT;

typedef enum { SENDING_HELLO, READING_HELLO, SENDING_AGAIN, HANDING_OVER, PASSING } stage_t;

// What is needed during the handshake only.
typedef struct {
    stage_t stage;
    uint16_t grow;              // set up again with this much room, then go on; 0: no need
    bool server_changed_cipher;
    bool server_finished;
    tlspolicy_hello_t hello;
    uint8_t kept[KEPT_BYTES];   // read from the server, not yet given to mbedtls
    uint16_t kept_have;
    uint16_t kept_given;
    uint8_t random[RANDOM_BYTES];
    uint8_t random_have;
    uint8_t random_given;
    bool random_overflow;
    mbedtls_time_t hello_time;
    uint8_t record[5];          // header of the record passing by
    uint8_t record_have;
    uint32_t record_left;
    uint8_t alert;              // the last one that the server sent in the clear
    bool alerted;
    mp_uint_t started_ms;
    uint32_t rx, tx;
    bool verified;              // the certificate callback has been called
    bool rooted;
    uint8_t root[32];
    mbedtls_x509_time not_before, not_after;
    bool have_dates;
    volatile mp_obj_t *raised;  // where step() keeps what the provider or the signer raised
    uint8_t out_record[5];      // header of the record being sent in pieces
    bool changed_cipher;        // ours: what is sent from here on is encrypted
    bool in_record;             // the socket took a part of the record before: this is its rest
    uint16_t out_left;          // of that record, not yet taken
    uint8_t *piece;             // a record with a part of it: 5 bytes and what was agreed
    uint16_t piece_have, piece_sent;
} handshake_t;

// What Python code set on a context.
typedef struct _context_t {
    struct _context_t *next;
    mbedtls_ssl_config *conf;
    void *verify_argument;
    mbedtls_x509_crt *roots;
    mbedtls_x509_crl *revoked;
    mbedtls_x509_crt *own_chain;    // load_cert_chain()
    mbedtls_pk_context *own_key;
    mbedtls_x509_crt *ours;         // what is in the context now is of client(), not the above
} context_t;

// What a connection keeps for its life.
typedef struct {
    uint32_t magic;
    mbedtls_ssl_context *ssl;
    mbedtls_ssl_config *conf;
    mbedtls_ssl_send_t *send;
    mbedtls_ssl_recv_t *recv;
    void *bio;
    handshake_t *handshake;
    tlspolicy_provider_t *provider; // NULL: the context's own roots; kept until the handshake ends
    tlspolicy_own_t *own;       // NULL: the context's own certificate, if any
    bool pinned;                // to the recovery endpoint, see tlspolicy_pin.c
    mbedtls_x509_crt *pin;      // until the handshake ends
    size_t said;                // bytes that a pinned one has sent, as far as they are looked at
    int refused;                // nonzero: every further call answers this
    uint16_t asked;             // 0: none
    uint16_t granted;           // 0: the server did not echo it
    uint16_t in_length;         // what fits into mbedtls's receive buffer, in the handshake
    uint16_t out_length;        // what fits into its send buffer
    bool named;                 // a host name to check was given
    bool offered;               // a session of this server was offered to it
    uint8_t host[32];           // SHA-256 of its name
    bool working;               // inside a step of the handshake
    bool closing;               // closed from inside that step: freed when it ends
    bool open;                  // the handshake ended well
} connection_t;

typedef struct {
    bool any;
    bool finished;
    bool resumed;
    char suite[48];
    uint16_t asked, granted;
    bool rooted;
    uint8_t root[32];
    uint32_t rx, tx, ms;
    bool have_dates;
    mbedtls_x509_time not_before, not_after;
    int error;
    uint32_t flags;
    uint8_t alert;
    bool alerted;
} facts_t;

static struct {
    uint16_t size;
    bool ecc_only;
    bool full_buffers;
} settings;

static facts_t last;
static context_t *contexts;
static connection_t *active;    // the one that mbedtls works on just now

static struct {
    size_t now, peak;
    size_t largest;             // largest block since it was last set to 0
    bool ended;                 // a block was refused since somebody asked
} heap;

// ------------------------------------------------------------------ what must hold, always

// In this order. Each list ends with 0.
static const int suites_all[] = {
    MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    MBEDTLS_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    MBEDTLS_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256,
    MBEDTLS_TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256,
    MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384,
    MBEDTLS_TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384,
    0,
};

static const int suites_ecc[] = {
    MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256,
    MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384,
    0,
};

int __real_mbedtls_ssl_config_defaults(mbedtls_ssl_config *conf, int endpoint, int transport, int preset);
void __real_mbedtls_ssl_conf_authmode(mbedtls_ssl_config *conf, int authmode);
void __real_mbedtls_ssl_conf_ciphersuites(mbedtls_ssl_config *conf, const int *suites);
void __real_mbedtls_ssl_conf_verify(mbedtls_ssl_config *conf,
    int (*verify)(void *, mbedtls_x509_crt *, int, uint32_t *), void *context);
void __real_mbedtls_ssl_conf_ca_chain(mbedtls_ssl_config *conf, mbedtls_x509_crt *roots,
    mbedtls_x509_crl *revoked);
int __real_mbedtls_ssl_conf_own_cert(mbedtls_ssl_config *conf, mbedtls_x509_crt *chain,
    mbedtls_pk_context *key);
void __real_mbedtls_ssl_config_free(mbedtls_ssl_config *conf);
int __real_mbedtls_ssl_setup(mbedtls_ssl_context *ssl, const mbedtls_ssl_config *conf);
int __real_mbedtls_ssl_set_hostname(mbedtls_ssl_context *ssl, const char *name);
void __real_mbedtls_ssl_set_bio(mbedtls_ssl_context *ssl, void *bio, mbedtls_ssl_send_t *send,
    mbedtls_ssl_recv_t *recv, mbedtls_ssl_recv_timeout_t *recv_timeout);
int __real_mbedtls_ssl_read(mbedtls_ssl_context *ssl, unsigned char *buf, size_t len);
int __real_mbedtls_ssl_write(mbedtls_ssl_context *ssl, const unsigned char *buf, size_t len);
void __real_mbedtls_ssl_free(mbedtls_ssl_context *ssl);
int __real_mbedtls_ctr_drbg_random(void *generator, unsigned char *out, size_t len);

int __wrap_mbedtls_ssl_config_defaults(mbedtls_ssl_config *conf, int endpoint, int transport, int preset);
void __wrap_mbedtls_ssl_conf_authmode(mbedtls_ssl_config *conf, int authmode);
void __wrap_mbedtls_ssl_conf_ciphersuites(mbedtls_ssl_config *conf, const int *suites);
void __wrap_mbedtls_ssl_conf_verify(mbedtls_ssl_config *conf,
    int (*verify)(void *, mbedtls_x509_crt *, int, uint32_t *), void *context);
void __wrap_mbedtls_ssl_conf_ca_chain(mbedtls_ssl_config *conf, mbedtls_x509_crt *roots,
    mbedtls_x509_crl *revoked);
int __wrap_mbedtls_ssl_conf_own_cert(mbedtls_ssl_config *conf, mbedtls_x509_crt *chain,
    mbedtls_pk_context *key);
void __wrap_mbedtls_ssl_config_free(mbedtls_ssl_config *conf);
int __wrap_mbedtls_ssl_setup(mbedtls_ssl_context *ssl, const mbedtls_ssl_config *conf);
int __wrap_mbedtls_ssl_set_hostname(mbedtls_ssl_context *ssl, const char *name);
void __wrap_mbedtls_ssl_set_bio(mbedtls_ssl_context *ssl, void *bio, mbedtls_ssl_send_t *send,
    mbedtls_ssl_recv_t *recv, mbedtls_ssl_recv_timeout_t *recv_timeout);
int __wrap_mbedtls_ssl_handshake(mbedtls_ssl_context *ssl);
int __wrap_mbedtls_ssl_read(mbedtls_ssl_context *ssl, unsigned char *buf, size_t len);
int __wrap_mbedtls_ssl_write(mbedtls_ssl_context *ssl, const unsigned char *buf, size_t len);
void __wrap_mbedtls_ssl_free(mbedtls_ssl_context *ssl);
int __wrap_mbedtls_ctr_drbg_random(void *generator, unsigned char *out, size_t len);

static unsigned char size_code(mp_int_t size) {
    switch (size) {
        case 512:
            return MBEDTLS_SSL_MAX_FRAG_LEN_512;
        case 1024:
            return MBEDTLS_SSL_MAX_FRAG_LEN_1024;
        case 2048:
            return MBEDTLS_SSL_MAX_FRAG_LEN_2048;
        case 4096:
            return MBEDTLS_SSL_MAX_FRAG_LEN_4096;
        default:
            return MBEDTLS_SSL_MAX_FRAG_LEN_NONE;
    }
}

static void set_record_size(mbedtls_ssl_config *conf, uint16_t size) {
    // mbedtls refuses a size above what its buffers are said to hold.
    size_t out = tlspolicy_out_length;
    tlspolicy_out_length = FULL_OUT;
    mbedtls_ssl_conf_max_frag_len(conf, size_code(size));
    tlspolicy_out_length = out;
}

// Applied when a connection is set up and again before every step of its handshake, so that
// nothing set on the context in between has an effect.
static void enforce(mbedtls_ssl_config *conf, uint16_t size) {
    mbedtls_ssl_conf_endpoint(conf, MBEDTLS_SSL_IS_CLIENT);
    mbedtls_ssl_conf_transport(conf, MBEDTLS_SSL_TRANSPORT_STREAM);
    mbedtls_ssl_conf_min_tls_version(conf, MBEDTLS_SSL_VERSION_TLS1_2);
    mbedtls_ssl_conf_max_tls_version(conf, MBEDTLS_SSL_VERSION_TLS1_2);
    __real_mbedtls_ssl_conf_authmode(conf, MBEDTLS_SSL_VERIFY_REQUIRED);
    __real_mbedtls_ssl_conf_ciphersuites(conf, settings.ecc_only ? suites_ecc : suites_all);
    mbedtls_ssl_conf_cert_profile(conf, &mbedtls_x509_crt_profile_default);
    #if defined(MBEDTLS_SSL_RENEGOTIATION)
    mbedtls_ssl_conf_renegotiation(conf, MBEDTLS_SSL_RENEGOTIATION_DISABLED);
    #endif
    #if defined(MBEDTLS_SSL_SESSION_TICKETS)
    mbedtls_ssl_conf_session_tickets(conf, tlspolicy_session_wanted()
        ? MBEDTLS_SSL_SESSION_TICKETS_ENABLED : MBEDTLS_SSL_SESSION_TICKETS_DISABLED);
    #endif
    set_record_size(conf, size);
}

static bool suite_allowed(int suite) {
    for (const int *allowed = suites_all; *allowed; ++allowed) {
        if (*allowed == suite) {
            return true;
        }
    }
    return false;
}

static context_t *context_of(const mbedtls_ssl_config *conf) {
    context_t *context = contexts;
    while (context != NULL && context->conf != conf) {
        context = context->next;
    }
    return context;
}

// ------------------------------------------------------------------------- the connection

static connection_t *connection_of(mbedtls_ssl_context *ssl) {
    connection_t *c = mbedtls_ssl_get_user_data_p(ssl);
    if (c == NULL || c->magic != CONNECTION_MAGIC || c->ssl != ssl) {
        return NULL;
    }
    return c;
}

// mbedtls's limits are those of this connection between enter() and leave(). They are put
// back around every call out of mbedtls (the socket, the certificate callback): another
// thread or another connection may run there, and an exception may never come back.
static int find_roots(void *unused, const mbedtls_x509_crt *child, mbedtls_x509_crt **found);

// Puts the certificate of this connection into its context, or the context's own back.
static void apply_own(connection_t *c) {
    context_t *context = context_of(c->conf);
    mbedtls_x509_crt *wanted = c->own != NULL ? tlspolicy_own_chain(c->own) : NULL;
    if (context == NULL || context->ours == wanted) {
        return;
    }
    context->ours = wanted;
    // Without memory there is none in it, and a server that wants one refuses.
    (void)__real_mbedtls_ssl_conf_own_cert(c->conf, NULL, NULL);
    if (wanted != NULL) {
        (void)__real_mbedtls_ssl_conf_own_cert(c->conf, wanted, tlspolicy_own_key(c->own));
    } else if (context->own_chain != NULL) {
        (void)__real_mbedtls_ssl_conf_own_cert(c->conf, context->own_chain, context->own_key);
    }
}

static void enter(connection_t *c, size_t out_length) {
    active = c;
    tlspolicy_out_length = out_length;
    if (c->handshake == NULL) {
        return;
    }
    apply_own(c);
    if (c->pin != NULL) {
        __real_mbedtls_ssl_conf_ca_chain(c->conf, c->pin, NULL);
    } else if (c->provider != NULL) {
        mbedtls_ssl_conf_ca_cb(c->conf, find_roots, NULL);
    } else {
        context_t *context = context_of(c->conf);
        __real_mbedtls_ssl_conf_ca_chain(c->conf, context != NULL ? context->roots : NULL,
            context != NULL ? context->revoked : NULL);
    }
}

static void leave(void) {
    active = NULL;
    tlspolicy_out_length = REST_OUT;
}

// mbedtls's question for the issuer of `child`. It frees the answer. The connection is the
// active one: another of the same context may have set the callback last.
static int find_roots(void *unused, const mbedtls_x509_crt *child, mbedtls_x509_crt **found) {
    (void)unused;
    connection_t *c = active;
    *found = NULL;
    if (c == NULL || c->handshake == NULL || c->provider == NULL) {
        return MBEDTLS_ERR_X509_FATAL_ERROR;
    }
    size_t out = tlspolicy_out_length;
    int ret = 0;
    leave();
    nlr_buf_t nlr;
    if (nlr_push(&nlr) == 0) {
        tlspolicy_walk_roots(c->provider, child, found);
        nlr_pop();
    } else {
        // It goes on its way once mbedtls has come back: see step().
        *c->handshake->raised = MP_OBJ_FROM_PTR(nlr.ret_val);
        ret = MBEDTLS_ERR_X509_FATAL_ERROR;
    }
    enter(c, out);
    if (c->closing) {
        ret = MBEDTLS_ERR_X509_FATAL_ERROR;
    }
    if (ret != 0) {
        tlspolicy_free_roots(*found);
        *found = NULL;
    }
    return ret;
}

void *tlspolicy_in_handshake(tlspolicy_own_t **own) {
    connection_t *c = active;
    if (c == NULL || c->handshake == NULL) {
        return NULL;
    }
    *own = c->own;
    return c;
}

size_t tlspolicy_step_out(void) {
    size_t out = tlspolicy_out_length;
    leave();
    return out;
}

bool tlspolicy_step_in(void *connection, size_t before, mp_obj_t raised) {
    connection_t *c = connection;
    if (raised != MP_OBJ_NULL) {
        *c->handshake->raised = raised;
    }
    enter(c, before);
    return !c->closing;
}

static void end_handshake(connection_t *c) {
    if (c->own != NULL) {
        tlspolicy_own_t *own = c->own;
        const context_t *context = context_of(c->conf);
        c->own = NULL;
        if (context != NULL && context->ours == tlspolicy_own_chain(own)) {
            apply_own(c);
        }
        tlspolicy_own_free(own);
    }
    if (c->handshake != NULL) {
        mbedtls_free(c->handshake->piece);
        mbedtls_platform_zeroize(c->handshake, sizeof(*c->handshake));
        mbedtls_free(c->handshake);
        c->handshake = NULL;
    }
    if (c->pin != NULL) {
        context_t *context = context_of(c->conf);
        if (context != NULL) {
            __real_mbedtls_ssl_conf_ca_chain(c->conf, context->roots, context->revoked);
        }
        tlspolicy_free_roots(c->pin);
        c->pin = NULL;
    }
    tlspolicy_provider_release(c->provider);
    c->provider = NULL;
}

static void keep_facts(connection_t *c, int error) {
    handshake_t *h = c->handshake;
    uint32_t flags = mbedtls_ssl_get_verify_result(c->ssl);
    memset(&last, 0, sizeof(last));
    last.any = true;
    last.asked = c->asked;
    last.granted = c->granted;
    last.error = error;
    last.flags = flags == 0xFFFFFFFFu ? 0 : flags;
    if (h != NULL) {
        last.rx = h->rx;
        last.tx = h->tx;
        last.ms = mp_hal_ticks_ms() - h->started_ms;
        last.rooted = h->rooted;
        memcpy(last.root, h->root, sizeof(last.root));
        last.alert = h->alert;
        last.alerted = h->alerted;
        last.have_dates = h->have_dates;
        last.not_before = h->not_before;
        last.not_after = h->not_after;
    }
    const char *suite = mbedtls_ssl_get_ciphersuite(c->ssl);
    if (error == 0 && suite != NULL) {
        last.finished = true;
        strncpy(last.suite, suite, sizeof(last.suite) - 1);
    }
}

static int fail(connection_t *c, int error) {
    keep_facts(c, error);
    end_handshake(c);
    c->refused = error;
    return error;
}

// ------------------------------------------------------------------- between mbedtls and socket

// Around a call of the socket, which may be a stream of Python's. mbedtls may come here from outside
// enter() and leave() too, with an alert: then nothing stays in force afterwards.
static int socket_came_back(connection_t *c, bool inside, size_t out, int ret, size_t len) {
    if (inside) {
        enter(c, out);
    }
    if (c->closing) {
        return MBEDTLS_ERR_SSL_CONN_EOF;
    }
    // More than was asked for: whoever goes by that reads and writes beyond the buffer.
    return ret > 0 && (size_t)ret > len ? MBEDTLS_ERR_SSL_INTERNAL_ERROR : ret;
}

static int socket_send(connection_t *c, const unsigned char *buf, size_t len) {
    bool inside = active == c;
    size_t out = tlspolicy_out_length;
    leave();
    int ret = c->closing ? 0 : c->send(c->bio, buf, len);
    ret = socket_came_back(c, inside, out, ret, len);
    // mbedtls takes 0 for "all of it went out".
    return ret == 0 && len > 0 ? MBEDTLS_ERR_SSL_WANT_WRITE : ret;
}

static int socket_recv(connection_t *c, unsigned char *buf, size_t len) {
    bool inside = active == c;
    size_t out = tlspolicy_out_length;
    leave();
    int ret = c->closing ? 0 : c->recv(c->bio, buf, len);
    ret = socket_came_back(c, inside, out, ret, len);
    if (ret > 0 && c->handshake != NULL) {
        c->handshake->rx += ret;
    }
    return ret;
}

// Follows the records of the handshake: the server's Finished is the first handshake record
// after its ChangeCipherSpec. An alert before it is in the clear: level and description.
static void watch(handshake_t *h, const unsigned char *bytes, size_t len) {
    while (len > 0) {
        if (h->record_left > 0) {
            size_t n = len < h->record_left ? len : h->record_left;
            h->record_left -= n;
            bytes += n;
            if (h->record_left == 0 && h->record[0] == MBEDTLS_SSL_MSG_ALERT
                && h->record[3] == 0 && h->record[4] == 2 && !h->server_changed_cipher) {
                h->alert = bytes[-1];
                h->alerted = true;
            }
            len -= n;
        } else {
            h->record[h->record_have++] = *bytes++;
            --len;
            if (h->record_have < sizeof(h->record)) {
                continue;
            }
            h->record_have = 0;
            h->record_left = h->record[3] << 8 | h->record[4];
        }
        if (h->record_have == 0 && h->record_left == 0) {
            if (h->record[0] == MBEDTLS_SSL_MSG_CHANGE_CIPHER_SPEC) {
                h->server_changed_cipher = true;
            } else if (h->record[0] == MBEDTLS_SSL_MSG_HANDSHAKE && h->server_changed_cipher) {
                h->server_finished = true;
            }
        }
    }
}

// Reads what the server says first, and settles what the connection needs.
static int read_hello(connection_t *c, handshake_t *h) {
    while (!h->hello.done && h->kept_have < KEPT_BYTES) {
        size_t wants = tlspolicy_hello_wants(&h->hello);
        if (wants > (size_t)(KEPT_BYTES - h->kept_have)) {
            wants = KEPT_BYTES - h->kept_have;
        }
        int got = socket_recv(c, h->kept + h->kept_have, wants);
        if (got <= 0) {
            return got;
        }
        for (int i = 0; i < got; ++i) {
            tlspolicy_hello_take(&h->hello, h->kept[h->kept_have++]);
        }
    }
    bool echoed = c->asked != 0 && h->hello.echoed == size_code(c->asked);
    if (h->hello.hello_seen && echoed) {
        c->granted = c->asked;
    }
    // Records follow one another in the receive buffer until the message is whole, and the
    // last of them may hold the beginning of what comes next.
    uint32_t needs = FULL_IN;
    if (c->granted != 0 && h->hello.certificate_size < FULL_IN) {
        needs = h->hello.certificate_size + c->granted + 64;
        needs = needs < FULL_IN ? needs : FULL_IN;
    }
    bool alert = h->hello.record[0] == MBEDTLS_SSL_MSG_ALERT;
    if (c->in_length < needs && !alert) {
        h->grow = needs;
        return MBEDTLS_ERR_SSL_WANT_READ;
    }
    h->stage = HANDING_OVER;
    return 1;
}

static int bio_recv(void *context, unsigned char *buf, size_t len) {
    connection_t *c = context;
    handshake_t *h = c->handshake;
    if (h == NULL) {
        return socket_recv(c, buf, len);
    }
    if (h->stage == SENDING_HELLO) {
        h->stage = READING_HELLO;
    }
    if (h->stage == READING_HELLO) {
        int ret = read_hello(c, h);
        if (ret <= 0) {
            return ret;
        }
    }
    if (h->stage == SENDING_AGAIN) {
        h->stage = HANDING_OVER;
    }
    int ret;
    if (h->kept_given < h->kept_have) {
        size_t n = h->kept_have - h->kept_given;
        n = n < len ? n : len;
        memcpy(buf, h->kept + h->kept_given, n);
        h->kept_given += n;
        ret = (int)n;
    } else {
        h->stage = PASSING;
        ret = socket_recv(c, buf, len);
    }
    if (ret > 0) {
        watch(h, buf, ret);
    }
    return ret;
}

// mbedtls puts a whole handshake message into one record, however small the records that were
// agreed are. Here such a record goes out in several. A piece counts as sent when all of it is, so
// that mbedtls comes again with the same bytes until then.
static int send_in_pieces(connection_t *c, handshake_t *h, const unsigned char *buf, size_t len) {
    size_t taken = 0;
    while (taken < len) {
        if (h->piece_have == 0) {
            if (h->out_left == 0) {
                memcpy(h->out_record, buf, sizeof(h->out_record));
                h->out_left = buf[3] << 8 | buf[4];
                taken += sizeof(h->out_record);
            }
            size_t part = h->out_left < c->granted ? h->out_left : c->granted;
            memcpy(h->piece, h->out_record, 3);
            h->piece[3] = part >> 8;
            h->piece[4] = part & 0xff;
            memcpy(h->piece + 5, buf + taken, part);
            h->piece_have = part + 5;
        }
        int ret = socket_send(c, h->piece + h->piece_sent, h->piece_have - h->piece_sent);
        if (ret < 0) {
            return taken > 0 ? (int)taken : ret;
        }
        h->piece_sent += ret;
        if (h->piece_sent == h->piece_have) {
            taken += h->piece_have - 5;
            h->out_left -= h->piece_have - 5;
            h->piece_have = h->piece_sent = 0;
        }
    }
    return (int)taken;
}

// A record of the handshake, in the clear, that is larger than was agreed: from its first byte on.
static bool needs_pieces(connection_t *c, handshake_t *h, const unsigned char *buf, size_t len) {
    if (h->out_left > 0) {
        return true;
    }
    if (c->granted == 0 || h->changed_cipher || h->in_record || len < 5) {
        return false;
    }
    if (buf[0] == MBEDTLS_SSL_MSG_CHANGE_CIPHER_SPEC) {
        h->changed_cipher = true;
    }
    return buf[0] == MBEDTLS_SSL_MSG_HANDSHAKE && (buf[3] << 8 | buf[4]) > c->granted
           && len == (size_t)5 + (buf[3] << 8 | buf[4]);
}

static int bio_send(void *context, const unsigned char *buf, size_t len) {
    connection_t *c = context;
    handshake_t *h = c->handshake;
    if (h != NULL && h->stage == SENDING_AGAIN) {
        return (int)len;    // the server has it already
    }
    if (h != NULL && needs_pieces(c, h, buf, len)) {
        if (h->piece == NULL) {
            h->piece = mbedtls_calloc(1, (size_t)c->granted + 5);
        }
        if (h->piece == NULL) {
            return MBEDTLS_ERR_SSL_ALLOC_FAILED;
        }
        int sent = send_in_pieces(c, h, buf, len);
        h->tx += sent > 0 ? sent : 0;
        return sent;
    }
    int ret = socket_send(c, buf, len);
    if (h != NULL && ret > 0) {
        h->tx += ret;
        h->in_record = (size_t)ret < len;
    }
    return ret;
}

// The same ClientHello again needs the same random bytes and the same second.
int __wrap_mbedtls_ctr_drbg_random(void *generator, unsigned char *out, size_t len) {
    handshake_t *h = active != NULL ? active->handshake : NULL;
    if (h != NULL && h->stage == SENDING_AGAIN) {
        if (len > (size_t)(h->random_have - h->random_given)) {
            return MBEDTLS_ERR_CTR_DRBG_REQUEST_TOO_BIG;
        }
        memcpy(out, h->random + h->random_given, len);
        h->random_given += len;
        return 0;
    }
    int ret = __real_mbedtls_ctr_drbg_random(generator, out, len);
    if (h != NULL && h->stage == SENDING_HELLO && ret == 0) {
        if (len > (size_t)(RANDOM_BYTES - h->random_have)) {
            h->random_overflow = true;
        } else {
            memcpy(h->random + h->random_have, out, len);
            h->random_have += len;
        }
    }
    return ret;
}

#ifdef ESP_PLATFORM
// MicroPython gives mbedtls its clock at start-up (main.c); ours stands between.
static mbedtls_time_t (*board_clock)(mbedtls_time_t *);
#define read_clock() (board_clock != NULL ? board_clock(NULL) : time(NULL))
#else
time_t TLSPOLICY_CLOCK(time_t *timer);
time_t tlspolicy_time(time_t *timer);
#define read_clock() TLSPOLICY_CLOCK(NULL)
#endif

static mbedtls_time_t handshake_clock(void) {
    handshake_t *h = active != NULL ? active->handshake : NULL;
    if (h != NULL && h->stage == SENDING_AGAIN) {
        return h->hello_time;
    }
    mbedtls_time_t now = read_clock();
    if (h != NULL && h->stage == SENDING_HELLO) {
        h->hello_time = now;
    }
    return now;
}

// ------------------------------------------------------------------------- certificates

static int (*context_verify)(void *, mbedtls_x509_crt *, int, uint32_t *);

// Called for each certificate of the chain, the anchoring root first.
static int certificate_seen(void *context, mbedtls_x509_crt *crt, int depth, uint32_t *flags) {
    connection_t *c = context;
    handshake_t *h = c->handshake;
    if (c->pinned) {
        *flags &= ~(uint32_t)(MBEDTLS_X509_BADCERT_EXPIRED | MBEDTLS_X509_BADCERT_FUTURE);
    }
    if (h != NULL) {
        if (!h->verified) {
            h->verified = true;
            h->rooted = !(*flags & MBEDTLS_X509_BADCERT_NOT_TRUSTED)
                && mbedtls_sha256(crt->raw.p, crt->raw.len, h->root, 0) == 0;
        }
        if (depth == 0) {
            h->not_before = crt->valid_from;
            h->not_after = crt->valid_to;
            h->have_dates = true;
        }
    }
    // MicroPython's own callback (SSLContext.verify_callback) can only refuse.
    const context_t *theirs = context_of(c->conf);
    if (context_verify == NULL || theirs == NULL || theirs->verify_argument == NULL) {
        return 0;
    }
    uint32_t before = *flags;
    size_t out = tlspolicy_out_length;
    leave();
    int ret = context_verify(theirs->verify_argument, crt, depth, flags);
    enter(c, out);
    *flags |= before;
    return c->closing ? MBEDTLS_ERR_SSL_CONN_EOF : ret;
}

// ------------------------------------------------------------------------- the wrapped calls

int __wrap_mbedtls_ssl_config_defaults(mbedtls_ssl_config *conf, int endpoint, int transport,
    int preset) {
    if (endpoint != MBEDTLS_SSL_IS_CLIENT || transport != MBEDTLS_SSL_TRANSPORT_STREAM) {
        return MBEDTLS_ERR_SSL_FEATURE_UNAVAILABLE;
    }
    context_t *context = context_of(conf);
    if (context == NULL) {
        context = mbedtls_calloc(1, sizeof(*context));
        if (context == NULL) {
            return MBEDTLS_ERR_SSL_ALLOC_FAILED;
        }
        context->conf = conf;
        context->next = contexts;
        contexts = context;
    }
    context->verify_argument = NULL;
    context->roots = NULL;
    context->revoked = NULL;
    context->own_chain = NULL;
    context->own_key = NULL;
    int ret = __real_mbedtls_ssl_config_defaults(conf, endpoint, transport, preset);
    if (ret == 0) {
        enforce(conf, settings.size);
    }
    return ret;
}

void __wrap_mbedtls_ssl_config_free(mbedtls_ssl_config *conf) {
    for (context_t **at = &contexts; *at != NULL; at = &(*at)->next) {
        if ((*at)->conf == conf) {
            context_t *context = *at;
            *at = context->next;
            mbedtls_free(context);
            break;
        }
    }
    __real_mbedtls_ssl_config_free(conf);
}

void __wrap_mbedtls_ssl_conf_ca_chain(mbedtls_ssl_config *conf, mbedtls_x509_crt *roots,
    mbedtls_x509_crl *revoked) {
    context_t *context = context_of(conf);
    if (context != NULL) {
        context->roots = roots;
        context->revoked = revoked;
    }
    __real_mbedtls_ssl_conf_ca_chain(conf, roots, revoked);
}

int __wrap_mbedtls_ssl_conf_own_cert(mbedtls_ssl_config *conf, mbedtls_x509_crt *chain,
    mbedtls_pk_context *key) {
    context_t *context = context_of(conf);
    if (context != NULL) {
        context->own_chain = chain;
        context->own_key = key;
        if (context->ours != NULL) {
            return 0;       // it goes in when the handshake under way is over
        }
    }
    return __real_mbedtls_ssl_conf_own_cert(conf, chain, key);
}

void __wrap_mbedtls_ssl_conf_authmode(mbedtls_ssl_config *conf, int authmode) {
    (void)authmode;
    __real_mbedtls_ssl_conf_authmode(conf, MBEDTLS_SSL_VERIFY_REQUIRED);
}

void __wrap_mbedtls_ssl_conf_ciphersuites(mbedtls_ssl_config *conf, const int *suites) {
    (void)suites;
    __real_mbedtls_ssl_conf_ciphersuites(conf, settings.ecc_only ? suites_ecc : suites_all);
}

void __wrap_mbedtls_ssl_conf_verify(mbedtls_ssl_config *conf,
    int (*verify)(void *, mbedtls_x509_crt *, int, uint32_t *), void *context) {
    // MicroPython has one such function; its argument is the context that holds `conf`.
    context_verify = verify;
    context_t *own = context_of(conf);
    if (own != NULL) {
        own->verify_argument = context;
    }
    __real_mbedtls_ssl_conf_verify(conf, verify, context);
}

int __wrap_mbedtls_ssl_setup(mbedtls_ssl_context *ssl, const mbedtls_ssl_config *given) {
    // MicroPython's SSLContext holds it, and changes it through the same calls as we do.
    mbedtls_ssl_config *conf = (mbedtls_ssl_config *)(uintptr_t)given;
    connection_t *c = mbedtls_calloc(1, sizeof(*c));
    if (c == NULL) {
        return MBEDTLS_ERR_SSL_ALLOC_FAILED;
    }
    c->magic = CONNECTION_MAGIC;
    c->ssl = ssl;
    c->conf = conf;
    c->asked = settings.size;
    bool full = settings.full_buffers || c->asked == 0;
    c->in_length = full ? FULL_IN : SMALL_IN;
    c->out_length = full || c->asked > SMALL_OUT ? FULL_OUT : SMALL_OUT;
    c->pin = tlspolicy_pin_take();
    c->pinned = c->pin != NULL;
    int ret = c->pinned ? 0 : tlspolicy_own_take(&c->own);
    if (ret != 0) {
        mbedtls_free(c);
        return ret;
    }
    if (c->own != NULL && tlspolicy_own_message(c->own) > c->out_length) {
        c->out_length = FULL_OUT;
    }
    enforce(conf, c->asked);

    tlspolicy_in_length = c->in_length;
    tlspolicy_out_length = c->out_length;
    ret = __real_mbedtls_ssl_setup(ssl, conf);
    tlspolicy_in_length = FULL_IN;
    leave();

    if (ret != 0) {
        tlspolicy_own_free(c->own);
        tlspolicy_free_roots(c->pin);
        mbedtls_free(c);
        return ret;
    }
    c->provider = c->pinned ? NULL : tlspolicy_provider_take();
    mbedtls_ssl_set_user_data_p(ssl, c);
    mbedtls_ssl_set_verify(ssl, certificate_seen, c);
    return 0;
}

int __wrap_mbedtls_ssl_set_hostname(mbedtls_ssl_context *ssl, const char *name) {
    connection_t *c = connection_of(ssl);
    int ret = __real_mbedtls_ssl_set_hostname(ssl, name);
    if (c != NULL && !c->open) {
        c->named = ret == 0 && name != NULL && name[0] != '\0';
        tlspolicy_session_host(c->named ? name : NULL, c->host);
    }
    return ret;
}

void __wrap_mbedtls_ssl_set_bio(mbedtls_ssl_context *ssl, void *bio, mbedtls_ssl_send_t *send,
    mbedtls_ssl_recv_t *recv, mbedtls_ssl_recv_timeout_t *recv_timeout) {
    connection_t *c = connection_of(ssl);
    if (c == NULL) {
        __real_mbedtls_ssl_set_bio(ssl, bio, send, recv, recv_timeout);
        return;
    }
    c->send = send;
    c->recv = recv;
    c->bio = bio;
    __real_mbedtls_ssl_set_bio(ssl, c, bio_send, bio_recv, NULL);
}

// Sets the connection up again with larger buffers; the ClientHello is written anew and kept
// from the socket.
static int grow(connection_t *c) {
    handshake_t *h = c->handshake;
    if (h->random_overflow) {
        return MBEDTLS_ERR_SSL_INTERNAL_ERROR;
    }
    c->in_length = h->grow;
    if (c->granted == 0) {
        c->out_length = FULL_OUT;
    }
    h->grow = 0;
    h->stage = SENDING_AGAIN;
    heap.largest = 0;
    tlspolicy_in_length = c->in_length;
    enter(c, c->out_length);
    int ret = mbedtls_ssl_session_reset(c->ssl);
    leave();
    tlspolicy_in_length = FULL_IN;
    if (ret == 0 && c->offered) {
        (void)tlspolicy_session_offer(c->ssl, c->host, c->asked, h->root);
    }
    // mbedtls goes on with its small buffer when there is no memory for the large one.
    if (ret == 0 && heap.largest < c->in_length) {
        ret = MBEDTLS_ERR_SSL_ALLOC_FAILED;
    }
    return ret;
}

// Whether the server took up the session that was offered, made when its certificate was verified:
// mbedtls has come to the end without one, by the secret of that session alone.
static bool resumed(const connection_t *c) {
    return c->offered && !c->handshake->verified;
}

static int finish(connection_t *c) {
    mbedtls_ssl_context *ssl = c->ssl;
    int error = 0;
    if (resumed(c)) {
        c->handshake->rooted = true;    // by the root that is kept with the session
    }
    if (mbedtls_ssl_get_version_number(ssl) != MBEDTLS_SSL_VERSION_TLS1_2) {
        error = MBEDTLS_ERR_SSL_BAD_PROTOCOL_VERSION;
    } else if (!suite_allowed(mbedtls_ssl_get_ciphersuite_id_from_ssl(ssl))) {
        error = MBEDTLS_ERR_SSL_HANDSHAKE_FAILURE;
    } else if (!(c->handshake->verified || resumed(c)) || !c->handshake->rooted
               || mbedtls_ssl_get_verify_result(ssl) != 0) {
        error = MBEDTLS_ERR_X509_CERT_VERIFY_FAILED;
    }
    if (error != 0) {
        return fail(c, error);
    }
    keep_facts(c, 0);
    last.resumed = resumed(c);
    if (!c->pinned) {
        tlspolicy_session_keep(ssl, c->host, c->asked, c->handshake->root);
    }
    end_handshake(c);
    // After the handshake the send buffer holds no more than was agreed.
    c->out_length = c->granted != 0 ? c->granted : FULL_OUT;
    c->open = true;
    return 0;
}

static TLSPOLICY_NORETURN void end_by_exception(connection_t *c, int error, void *exception) {
    leave();
    c->working = false;
    fail(c, error);
    if (c->closing) {
        __wrap_mbedtls_ssl_free(c->ssl);
    }
    nlr_jump(exception);
}

// One step of mbedtls's handshake. An exception (of the socket, of the certificate callback,
// a Ctrl-C) leaves mbedtls half-way through it: such a connection never goes on. One of the
// provider of roots waits until mbedtls has refused the certificate.
static int step(connection_t *c, size_t out_length) {
    volatile mp_obj_t raised = MP_OBJ_NULL;
    nlr_buf_t nlr;
    if (nlr_push(&nlr) != 0) {
        end_by_exception(c, MBEDTLS_ERR_SSL_INTERNAL_ERROR, nlr.ret_val);
    }
    c->working = true;
    c->handshake->raised = &raised;
    enter(c, out_length);
    int ret = mbedtls_ssl_handshake_step(c->ssl);
    leave();
    c->handshake->raised = NULL;
    c->working = false;
    nlr_pop();
    if (raised != MP_OBJ_NULL) {
        end_by_exception(c, MBEDTLS_ERR_X509_FATAL_ERROR, MP_OBJ_TO_PTR(raised));
    }
    return ret;
}

int __wrap_mbedtls_ssl_handshake(mbedtls_ssl_context *ssl) {
    connection_t *c = connection_of(ssl);
    if (c == NULL || c->send == NULL) {
        return MBEDTLS_ERR_SSL_BAD_INPUT_DATA;
    }
    if (c->refused != 0 || c->open) {
        return c->refused;
    }
    if (c->working) {
        // The socket or the callback calls back in here, from inside a step. MicroPython
        // frees a connection on an error, under mbedtls's feet; so there is just no data.
        return MBEDTLS_ERR_SSL_WANT_READ;
    }
    if (c->handshake == NULL) {
        c->handshake = mbedtls_calloc(1, sizeof(*c->handshake));
        if (c->handshake == NULL) {
            return MBEDTLS_ERR_SSL_ALLOC_FAILED;
        }
        c->handshake->started_ms = mp_hal_ticks_ms();
        c->offered = !c->pinned
            && tlspolicy_session_offer(ssl, c->host, c->asked, c->handshake->root);
    }
    if (!c->named) {
        return fail(c, MBEDTLS_ERR_SSL_CERTIFICATE_VERIFICATION_WITHOUT_HOSTNAME);
    }
    while (!mbedtls_ssl_is_handshake_over(ssl)) {
        const context_t *context = context_of(c->conf);
        if (c->pinned && (context == NULL || context->own_chain != NULL || context->ours != NULL)) {
            return fail(c, MBEDTLS_ERR_SSL_BAD_CONFIG);     // it shows no certificate of the device
        }
        // At the end mbedtls shrinks its buffers to the size asked for; not so when it was
        // not granted.
        bool keep = c->handshake->server_finished && c->granted == 0;
        enforce(c->conf, keep ? 0 : c->asked);
        tlspolicy_memory_ended();
        int ret = step(c, keep ? FULL_IN : c->out_length);
        if (c->closing) {
            __wrap_mbedtls_ssl_free(ssl);
            return MBEDTLS_ERR_SSL_CONN_EOF;
        }
        if (c->handshake->grow != 0 && ret == MBEDTLS_ERR_SSL_WANT_READ) {
            ret = grow(c);
        }
        if (ret == MBEDTLS_ERR_SSL_WANT_READ || ret == MBEDTLS_ERR_SSL_WANT_WRITE) {
            return ret;
        }
        if (ret != 0) {
            // Of a certificate whose signature it had no memory to verify, mbedtls says that it is
            // not trusted.
            return fail(c, tlspolicy_memory_ended() ? MBEDTLS_ERR_SSL_ALLOC_FAILED : ret);
        }
    }
    return finish(c);
}

// Ready for data: the handshake is done first, if it is not yet.
static int ready(mbedtls_ssl_context *ssl, connection_t **connection) {
    int ret = __wrap_mbedtls_ssl_handshake(ssl);
    if (ret == 0) {
        *connection = connection_of(ssl);
        // Another connection of the same context may have left its own size there.
        set_record_size((*connection)->conf, (*connection)->granted);
    }
    return ret;
}

int __wrap_mbedtls_ssl_read(mbedtls_ssl_context *ssl, unsigned char *buf, size_t len) {
    connection_t *c;
    int ret = ready(ssl, &c);
    if (ret == 0) {
        enter(c, c->out_length);
        ret = __real_mbedtls_ssl_read(ssl, buf, len);
        leave();
    }
    return ret;
}

int __wrap_mbedtls_ssl_write(mbedtls_ssl_context *ssl, const unsigned char *buf, size_t len) {
    connection_t *c;
    int ret = ready(ssl, &c);
    if (ret == 0 && c->pinned && !tlspolicy_pin_allows(c->said, buf, len)) {
        return MBEDTLS_ERR_SSL_BAD_INPUT_DATA;
    }
    if (ret == 0) {
        enter(c, c->out_length);
        ret = __real_mbedtls_ssl_write(ssl, buf, len);
        leave();
        c->said += c->pinned && ret > 0 ? (size_t)ret : 0;
    }
    return ret;
}

void __wrap_mbedtls_ssl_free(mbedtls_ssl_context *ssl) {
    connection_t *c = ssl != NULL ? connection_of(ssl) : NULL;
    if (c != NULL && c->working) {
        c->closing = true;
        return;
    }
    __real_mbedtls_ssl_free(ssl);
    if (c != NULL) {
        end_handshake(c);
        if (active == c) {
            leave();
        }
        c->magic = 0;
        mbedtls_free(c);
    }
}

// ------------------------------------------------------------------------- memory, clock

bool tlspolicy_memory_ended(void) {
    bool ended = heap.ended;
    heap.ended = false;
    return ended;
}

static void count_taken(size_t size) {
    heap.now += size;
    heap.peak = heap.now > heap.peak ? heap.now : heap.peak;
    heap.largest = size > heap.largest ? size : heap.largest;
}

#ifdef ESP_PLATFORM

#include "esp_heap_caps.h"

void *__real_esp_mbedtls_mem_calloc(size_t count, size_t size);
void __real_esp_mbedtls_mem_free(void *memory);
void *__wrap_esp_mbedtls_mem_calloc(size_t count, size_t size);
void __wrap_esp_mbedtls_mem_free(void *memory);
int __real_mbedtls_platform_set_time(mbedtls_time_t (*clock)(mbedtls_time_t *));
int __wrap_mbedtls_platform_set_time(mbedtls_time_t (*clock)(mbedtls_time_t *));

void *__wrap_esp_mbedtls_mem_calloc(size_t count, size_t size) {
    void *memory = __real_esp_mbedtls_mem_calloc(count, size);
    if (memory != NULL) {
        count_taken(heap_caps_get_allocated_size(memory));
    } else {
        heap.ended = true;
    }
    return memory;
}

void __wrap_esp_mbedtls_mem_free(void *memory) {
    if (memory != NULL) {
        heap.now -= heap_caps_get_allocated_size(memory);
    }
    __real_esp_mbedtls_mem_free(memory);
}

static mbedtls_time_t clock_for_mbedtls(mbedtls_time_t *timer) {
    mbedtls_time_t now = handshake_clock();
    if (timer != NULL) {
        *timer = now;
    }
    return now;
}

int __wrap_mbedtls_platform_set_time(mbedtls_time_t (*clock)(mbedtls_time_t *)) {
    board_clock = clock;
    return __real_mbedtls_platform_set_time(clock_for_mbedtls);
}

#else

void *tlspolicy_calloc(size_t count, size_t size);
void tlspolicy_free(void *memory);
void board_cheap_counts(size_t *now, size_t *peak);

// Each block is preceded by its size; 16 bytes keep the alignment that malloc promises.
#define BLOCK_HEADER (16)

void *tlspolicy_calloc(size_t count, size_t size) {
    if (size != 0 && count > (SIZE_MAX - BLOCK_HEADER) / size) {
        return NULL;
    }
    size_t *block = calloc(1, BLOCK_HEADER + count * size);
    if (block == NULL) {
        heap.ended = true;
        return NULL;
    }
    *block = count * size;
    count_taken(count * size);
    return (char *)block + BLOCK_HEADER;
}

void tlspolicy_free(void *memory) {
    if (memory != NULL) {
        size_t *block = (size_t *)(void *)((char *)memory - BLOCK_HEADER);
        heap.now -= *block;
        free(block);
    }
}

time_t tlspolicy_time(time_t *timer) {
    time_t now = handshake_clock();
    if (timer != NULL) {
        *timer = now;
    }
    return now;
}

// The virtual board's report asks for this.
void board_cheap_counts(size_t *now, size_t *peak) {
    *now = heap.now;
    *peak = heap.peak;
}

#endif

// ------------------------------------------------------------------------- the Python module

static mp_obj_t size_or_none(uint16_t size) {
    return size == 0 ? mp_const_none : MP_OBJ_NEW_SMALL_INT(size);
}

static mp_obj_t tlspolicy_max_fragment_length(size_t n_args, const mp_obj_t *args) {
    if (n_args == 1) {
        mp_int_t size = mp_obj_is_small_int(args[0]) ? MP_OBJ_SMALL_INT_VALUE(args[0]) : 0;
        if (args[0] != mp_const_none && size_code(size) == MBEDTLS_SSL_MAX_FRAG_LEN_NONE) {
            mp_raise_ValueError(
                MP_ERROR_TEXT("max_fragment_length must be 512, 1024, 2048, 4096 or None"));
        }
        settings.size = size;
    }
    return size_or_none(settings.size);
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(tlspolicy_max_fragment_length_obj, 0, 1, tlspolicy_max_fragment_length);

static mp_obj_t tlspolicy_suites(size_t n_args, const mp_obj_t *args) {
    if (n_args == 1) {
        const char *name = mp_obj_is_str(args[0]) ? mp_obj_str_get_str(args[0]) : "";
        bool ecc = strcmp(name, "ecc") == 0;
        if (!ecc && strcmp(name, "all") != 0) {
            mp_raise_ValueError(MP_ERROR_TEXT("suites must be 'all' or 'ecc'"));
        }
        settings.ecc_only = ecc;
    }
    return MP_OBJ_NEW_QSTR(settings.ecc_only ? MP_QSTR_ecc : MP_QSTR_all);
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(tlspolicy_suites_obj, 0, 1, tlspolicy_suites);

static mp_obj_t tlspolicy_full_buffers(size_t n_args, const mp_obj_t *args) {
    if (n_args == 1) {
        settings.full_buffers = mp_obj_is_true(args[0]);
    }
    return mp_obj_new_bool(settings.full_buffers);
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(tlspolicy_full_buffers_obj, 0, 1, tlspolicy_full_buffers);

static mp_obj_t date_or_none(bool known, const mbedtls_x509_time *t) {
    if (!known) {
        return mp_const_none;
    }
    const int parts[] = {t->year, t->mon, t->day, t->hour, t->min, t->sec};
    char text[14];
    size_t at = 0;
    for (size_t i = 0; i < MP_ARRAY_SIZE(parts); ++i) {
        int value = parts[i];
        size_t digits = i == 0 ? 4 : 2;
        for (size_t d = digits; d > 0; --d) {
            text[at + d - 1] = '0' + value % 10;
            value /= 10;
        }
        at += digits;
    }
    return mp_obj_new_str(text, at);
}

static mp_obj_t tlspolicy_last(void) {
    if (!last.any) {
        return mp_const_none;
    }
    mp_obj_t facts = mp_obj_new_dict(14);
    mp_obj_dict_store(facts, MP_OBJ_NEW_QSTR(MP_QSTR_version),
        last.finished ? mp_obj_new_str("TLSv1.2", 7) : mp_const_none);
    mp_obj_dict_store(facts, MP_OBJ_NEW_QSTR(MP_QSTR_resumed), mp_obj_new_bool(last.resumed));
    mp_obj_dict_store(facts, MP_OBJ_NEW_QSTR(MP_QSTR_suite),
        last.finished ? mp_obj_new_str(last.suite, strlen(last.suite)) : mp_const_none);
    mp_obj_dict_store(facts, MP_OBJ_NEW_QSTR(MP_QSTR_asked), size_or_none(last.asked));
    mp_obj_dict_store(facts, MP_OBJ_NEW_QSTR(MP_QSTR_granted), size_or_none(last.granted));
    mp_obj_dict_store(facts, MP_OBJ_NEW_QSTR(MP_QSTR_root),
        last.rooted ? mp_obj_new_bytes(last.root, sizeof(last.root)) : mp_const_none);
    mp_obj_dict_store(facts, MP_OBJ_NEW_QSTR(MP_QSTR_rx), mp_obj_new_int_from_uint(last.rx));
    mp_obj_dict_store(facts, MP_OBJ_NEW_QSTR(MP_QSTR_tx), mp_obj_new_int_from_uint(last.tx));
    mp_obj_dict_store(facts, MP_OBJ_NEW_QSTR(MP_QSTR_ms), mp_obj_new_int_from_uint(last.ms));
    mp_obj_dict_store(facts, MP_OBJ_NEW_QSTR(MP_QSTR_not_before),
        date_or_none(last.have_dates, &last.not_before));
    mp_obj_dict_store(facts, MP_OBJ_NEW_QSTR(MP_QSTR_not_after),
        date_or_none(last.have_dates, &last.not_after));
    mp_obj_dict_store(facts, MP_OBJ_NEW_QSTR(MP_QSTR_error), mp_obj_new_int(last.error));
    mp_obj_dict_store(facts, MP_OBJ_NEW_QSTR(MP_QSTR_flags), mp_obj_new_int_from_uint(last.flags));
    mp_obj_dict_store(facts, MP_OBJ_NEW_QSTR(MP_QSTR_alert),
        last.alerted ? MP_OBJ_NEW_SMALL_INT(last.alert) : mp_const_none);
    return facts;
}
static MP_DEFINE_CONST_FUN_OBJ_0(tlspolicy_last_obj, tlspolicy_last);

static mp_obj_t tlspolicy_heap(void) {
    mp_obj_t counts[] = {mp_obj_new_int_from_uint(heap.now), mp_obj_new_int_from_uint(heap.peak)};
    return mp_obj_new_tuple(MP_ARRAY_SIZE(counts), counts);
}
static MP_DEFINE_CONST_FUN_OBJ_0(tlspolicy_heap_obj, tlspolicy_heap);

static mp_obj_t tlspolicy_heap_reset(void) {
    heap.peak = heap.now;
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_0(tlspolicy_heap_reset_obj, tlspolicy_heap_reset);

static const mp_rom_map_elem_t tlspolicy_globals_table[] = {
    { MP_ROM_QSTR(MP_QSTR___name__), MP_ROM_QSTR(MP_QSTR_tlspolicy) },
    { MP_ROM_QSTR(MP_QSTR_max_fragment_length), MP_ROM_PTR(&tlspolicy_max_fragment_length_obj) },
    { MP_ROM_QSTR(MP_QSTR_suites), MP_ROM_PTR(&tlspolicy_suites_obj) },
    { MP_ROM_QSTR(MP_QSTR_roots), MP_ROM_PTR(&tlspolicy_roots_obj) },
    { MP_ROM_QSTR(MP_QSTR_full_buffers), MP_ROM_PTR(&tlspolicy_full_buffers_obj) },
    { MP_ROM_QSTR(MP_QSTR_last), MP_ROM_PTR(&tlspolicy_last_obj) },
    { MP_ROM_QSTR(MP_QSTR_heap), MP_ROM_PTR(&tlspolicy_heap_obj) },
    { MP_ROM_QSTR(MP_QSTR_heap_reset), MP_ROM_PTR(&tlspolicy_heap_reset_obj) },
    { MP_ROM_QSTR(MP_QSTR_key_new), MP_ROM_PTR(&tlspolicy_key_new_obj) },
    { MP_ROM_QSTR(MP_QSTR_key_public), MP_ROM_PTR(&tlspolicy_key_public_obj) },
    { MP_ROM_QSTR(MP_QSTR_key_erase), MP_ROM_PTR(&tlspolicy_key_erase_obj) },
    { MP_ROM_QSTR(MP_QSTR_key_csr), MP_ROM_PTR(&tlspolicy_key_csr_obj) },
    { MP_ROM_QSTR(MP_QSTR_key_sign), MP_ROM_PTR(&tlspolicy_key_sign_obj) },
    { MP_ROM_QSTR(MP_QSTR_key_agree), MP_ROM_PTR(&tlspolicy_key_agree_obj) },
    { MP_ROM_QSTR(MP_QSTR_self_signed), MP_ROM_PTR(&tlspolicy_self_signed_obj) },
    { MP_ROM_QSTR(MP_QSTR_verify), MP_ROM_PTR(&tlspolicy_verify_obj) },
    { MP_ROM_QSTR(MP_QSTR_certificate), MP_ROM_PTR(&tlspolicy_certificate_obj) },
    { MP_ROM_QSTR(MP_QSTR_chain_ok), MP_ROM_PTR(&tlspolicy_chain_ok_obj) },
    { MP_ROM_QSTR(MP_QSTR_client), MP_ROM_PTR(&tlspolicy_client_obj) },
    { MP_ROM_QSTR(MP_QSTR_session), MP_ROM_PTR(&tlspolicy_session_obj) },
    { MP_ROM_QSTR(MP_QSTR_keep_session), MP_ROM_PTR(&tlspolicy_keep_session_obj) },
    { MP_ROM_QSTR(MP_QSTR_pinned), MP_ROM_PTR(&tlspolicy_pinned_obj) },
};
static MP_DEFINE_CONST_DICT(tlspolicy_globals, tlspolicy_globals_table);

const mp_obj_module_t tlspolicy_module = {
    .base = { &mp_type_module },
    .globals = (mp_obj_dict_t *)&tlspolicy_globals,
};

MP_REGISTER_MODULE(MP_QSTR_tlspolicy, tlspolicy_module);
