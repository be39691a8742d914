// SPDX-License-Identifier: MIT
// Roots on demand: what Python gave as the provider of trusted roots, and one walk through them.
//
// Where a provider is set, mbedtls asks tlspolicy.c for the issuer of each certificate of the chain.
// The provider's roots are read one after the other, and only one that can be that issuer stays in
// memory until the next question; after the handshake none does.
// Owns the list of providers, in the MicroPython heap: their finaliser takes them out at a soft reset,
// so that nothing is left dangling.

#include <string.h>

#include "py/mperrno.h"

#include "tlspolicy_internal.h"

#include "mbedtls/platform.h"

#define MAX_ROOTS (16)

// What gives the roots: a Python callable, in the MicroPython heap. It stays in the list while
// it is in force or a connection that was set up with it may still ask.
typedef struct _tlspolicy_provider_t {
    mp_obj_base_t base;
    mp_obj_t callable;
    struct _tlspolicy_provider_t *next;
    uint16_t users;
    bool in_force;
    bool listed;
} provider_t;

MP_REGISTER_ROOT_POINTER(struct _tlspolicy_provider_t *tlspolicy_providers);

static provider_t *provider_in_force(void) {
    provider_t *p = MP_STATE_VM(tlspolicy_providers);
    while (p != NULL && !p->in_force) {
        p = p->next;
    }
    return p;
}

// Takes a provider that nobody needs out of the list, so that it can be collected. This may run
// inside a collection (a connection's finaliser), so it only moves pointers.
static void unlist_unused(provider_t *provider) {
    if (provider->in_force || provider->users > 0) {
        return;
    }
    provider_t **at = &MP_STATE_VM(tlspolicy_providers);
    while (*at != NULL) {
        if (*at == provider) {
            *at = provider->next;
            provider->next = NULL;
            provider->listed = false;
            return;
        }
        at = &(*at)->next;
    }
}

provider_t *tlspolicy_provider_take(void) {
    provider_t *provider = provider_in_force();
    if (provider != NULL) {
        ++provider->users;
    }
    return provider;
}

void tlspolicy_provider_release(provider_t *provider) {
    // At a soft reset the providers may be gone before the connections.
    if (provider != NULL && MP_STATE_VM(tlspolicy_providers) != NULL) {
        --provider->users;
        unlist_unused(provider);
    }
}

// Whether this certificate can have issued `child`, by name and, where both tell it, by key.
static bool may_have_issued(const mbedtls_x509_crt *root, const mbedtls_x509_crt *child) {
    const mbedtls_x509_buf *issuer = &child->issuer_raw, *subject = &root->subject_raw;
    if (issuer->len != subject->len || memcmp(issuer->p, subject->p, issuer->len) != 0) {
        return false;
    }
    const mbedtls_x509_buf *wanted = &child->authority_key_id.keyIdentifier;
    const mbedtls_x509_buf *own = &root->subject_key_id;
    return wanted->len == 0 || own->len == 0
           || (wanted->len == own->len && memcmp(wanted->p, own->p, own->len) == 0);
}

void tlspolicy_free_roots(mbedtls_x509_crt *roots) {
    mbedtls_x509_crt_free(roots);
    mbedtls_free(roots);
}

// Asks the provider for all its roots, and adds to *found each that may have issued `child`.
// Raises what the provider raises, and where it gives something that is not a certificate.
void tlspolicy_walk_roots(provider_t *provider, const mbedtls_x509_crt *child,
    mbedtls_x509_crt **found) {
    mp_obj_t roots = mp_getiter(mp_call_function_0(provider->callable), NULL);
    mp_obj_t item;
    for (int count = 1; (item = mp_iternext(roots)) != MP_OBJ_STOP_ITERATION; ++count) {
        if (count > MAX_ROOTS) {
            mp_raise_ValueError(MP_ERROR_TEXT("more than 16 trusted roots"));
        }
        mp_buffer_info_t der;
        mp_get_buffer_raise(item, &der, MP_BUFFER_READ);
        mbedtls_x509_crt *root = mbedtls_calloc(1, sizeof(*root));
        if (root == NULL) {
            mp_raise_OSError(MP_ENOMEM);
        }
        mbedtls_x509_crt_init(root);
        tlspolicy_memory_ended();
        int ret = mbedtls_x509_crt_parse_der(root, der.buf, der.len);
        if (ret == 0 && may_have_issued(root, child)) {
            while (*found != NULL) {
                found = &(*found)->next;
            }
            *found = root;
            continue;
        }
        tlspolicy_free_roots(root);
        if (ret != 0 && (tlspolicy_out_of_memory(ret) || tlspolicy_memory_ended())) {
            mp_raise_OSError(MP_ENOMEM);
        }
        if (ret != 0) {
            mp_raise_ValueError(MP_ERROR_TEXT("a trusted root cannot be read"));
        }
    }
}

// ---- the Python side

// At a soft reset, when the whole heap is swept: nothing may be kept of it.
static mp_obj_t provider_del(mp_obj_t self) {
    const provider_t *provider = MP_OBJ_TO_PTR(self);
    if (provider->listed) {
        MP_STATE_VM(tlspolicy_providers) = NULL;
    }
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_1(provider_del_obj, provider_del);

static const mp_rom_map_elem_t provider_locals_table[] = {
    { MP_ROM_QSTR(MP_QSTR___del__), MP_ROM_PTR(&provider_del_obj) },
};
static MP_DEFINE_CONST_DICT(provider_locals, provider_locals_table);

static MP_DEFINE_CONST_OBJ_TYPE(
    provider_type, MP_QSTR_roots, MP_TYPE_FLAG_NONE, locals_dict, &provider_locals);

static mp_obj_t tlspolicy_roots(size_t n_args, const mp_obj_t *args) {
    provider_t *now = provider_in_force();
    if (n_args == 0) {
        return now != NULL ? now->callable : mp_const_none;
    }
    if (args[0] != mp_const_none && !mp_obj_is_callable(args[0])) {
        mp_raise_TypeError(MP_ERROR_TEXT("roots must be a callable or None"));
    }
    provider_t *next = NULL;
    if (args[0] != mp_const_none) {
        next = mp_obj_malloc_with_finaliser(provider_t, &provider_type);
        next->callable = args[0];
        next->users = 0;
        next->in_force = true;
        next->listed = true;
    }
    if (now != NULL) {
        now->in_force = false;
        unlist_unused(now);
    }
    if (next != NULL) {
        next->next = MP_STATE_VM(tlspolicy_providers);
        MP_STATE_VM(tlspolicy_providers) = next;
    }
    return args[0];
}
MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(tlspolicy_roots_obj, 0, 1, tlspolicy_roots);
