// SPDX-License-Identifier: MIT
// AES-256 in XTS mode (FIPS 197, IEEE 1619), with tables made at the first use.
#include "nvs_aes.h"

#include "bytes.h"

#include <string.h>

#define ROUNDS 14

static uint8_t substitute[256], substitute_back[256];
static uint32_t mix[256], unmix[256];

static uint8_t twice(uint8_t x) {
    return (uint8_t)(x << 1 ^ (x & 0x80 ? 0x1b : 0));
}

static uint32_t turned(uint32_t word, unsigned bits) {
    return bits == 0 ? word : word >> bits | word << (32 - bits);
}

static void make_tables(void) {
    if (mix[0] != 0) {
        return;
    }
    uint8_t p = 1, q = 1;
    do {
        p = (uint8_t)(p ^ twice(p));                // times 3
        q = (uint8_t)(q ^ q << 1);                  // divided by 3
        q = (uint8_t)(q ^ q << 2);
        q = (uint8_t)(q ^ q << 4);
        q = (uint8_t)(q ^ (q & 0x80 ? 0x09 : 0));
        uint8_t s = q;
        for (unsigned i = 1; i <= 4; i++) {
            s = (uint8_t)(s ^ (uint8_t)(q << i | q >> (8 - i)));
        }
        substitute[p] = s ^ 0x63;
    } while (p != 1);
    substitute[0] = 0x63;
    for (unsigned x = 0; x < 256; x++) {
        substitute_back[substitute[x]] = (uint8_t)x;
    }
    for (unsigned x = 0; x < 256; x++) {
        uint8_t s = substitute[x], b = substitute_back[x];
        uint8_t b2 = twice(b), b4 = twice(b2), b8 = twice(b4);
        mix[x] = (uint32_t)twice(s) << 24 | (uint32_t)s << 16 | (uint32_t)s << 8 | (uint32_t)(s ^ twice(s));
        unmix[x] = (uint32_t)(b8 ^ b4 ^ b2) << 24 | (uint32_t)(b8 ^ b) << 16
            | (uint32_t)(b8 ^ b4 ^ b) << 8 | (uint32_t)(b8 ^ b2 ^ b);
    }
}

static uint32_t be32(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void put_be32(uint8_t *p, uint32_t word) {
    for (int i = 0; i < 4; i++) {
        p[i] = (uint8_t)(word >> (24 - 8 * i));
    }
}

static uint32_t substituted(uint32_t word) {
    uint32_t result = 0;
    for (unsigned shift = 0; shift < 32; shift += 8) {
        result |= (uint32_t)substitute[word >> shift & 0xff] << shift;
    }
    return result;
}

static void expand(uint32_t words[AES_WORDS], const uint8_t key[32]) {
    uint8_t round = 1;
    for (int i = 0; i < AES_WORDS; i++) {
        if (i < 8) {
            words[i] = be32(key + 4 * i);
            continue;
        }
        uint32_t word = words[i - 1];
        if (i % 8 == 0) {
            word = substituted(turned(word, 24)) ^ (uint32_t)round << 24;
            round = twice(round);
        } else if (i % 8 == 4) {
            word = substituted(word);
        }
        words[i] = words[i - 8] ^ word;
    }
}

// The same round keys in the order, and of the form, that the inverse cipher takes.
static void expand_back(uint32_t words[AES_WORDS], const uint32_t forward[AES_WORDS]) {
    for (int i = 0; i < AES_WORDS; i++) {
        uint32_t word = forward[(ROUNDS - i / 4) * 4 + i % 4];
        if (i >= 4 && i < AES_WORDS - 4) {
            uint32_t mixed = 0;
            for (unsigned part = 0; part < 4; part++) {
                mixed ^= turned(unmix[substitute[word >> (24 - 8 * part) & 0xff]], 8 * part);
            }
            word = mixed;
        }
        words[i] = word;
    }
}

// `step`: from which column the next byte comes: the next one, or for the inverse the one before.
static void block(const uint32_t keys[AES_WORDS], const uint32_t table[256], const uint8_t last[256],
    unsigned step, uint8_t data[16]) {
    uint32_t state[4], next[4];
    for (unsigned c = 0; c < 4; c++) {
        state[c] = be32(data + 4 * c) ^ keys[c];
    }
    for (unsigned round = 1; round <= ROUNDS; round++) {
        for (unsigned c = 0; c < 4; c++) {
            uint32_t word = 0;
            for (unsigned part = 0; part < 4; part++) {
                uint8_t byte = (uint8_t)(state[(c + step * part) % 4] >> (24 - 8 * part));
                word ^= round < ROUNDS ? turned(table[byte], 8 * part)
                    : (uint32_t)last[byte] << (24 - 8 * part);
            }
            next[c] = word ^ keys[4 * round + c];
        }
        memcpy(state, next, sizeof(state));
    }
    for (unsigned c = 0; c < 4; c++) {
        put_be32(data + 4 * c, state[c]);
    }
}

void xts_begin(xts_t *xts, const uint8_t key[XTS_KEY_BYTES]) {
    make_tables();
    expand(xts->encrypt, key);
    expand_back(xts->decrypt, xts->encrypt);
    expand(xts->tweak, key + 32);
}

static void run(const xts_t *xts, uint32_t number, uint8_t *entry, bool back) {
    uint8_t tweak[16] = { 0 };
    put_le32(tweak, number);
    block(xts->tweak, mix, substitute, 1, tweak);
    for (unsigned part = 0; part < XTS_ENTRY_BYTES; part += 16) {
        for (unsigned i = 0; i < 16; i++) {
            entry[part + i] ^= tweak[i];
        }
        if (back) {
            block(xts->decrypt, unmix, substitute_back, 3, entry + part);
        } else {
            block(xts->encrypt, mix, substitute, 1, entry + part);
        }
        for (unsigned i = 0; i < 16; i++) {
            entry[part + i] ^= tweak[i];
        }
        unsigned carry = 0;
        for (unsigned i = 0; i < 16; i++) {
            unsigned doubled = (unsigned)tweak[i] << 1 | carry;
            tweak[i] = (uint8_t)doubled;
            carry = doubled >> 8;
        }
        tweak[0] ^= carry ? 0x87 : 0;
    }
}

void xts_encrypt(const xts_t *xts, uint32_t number, uint8_t entry[XTS_ENTRY_BYTES]) {
    run(xts, number, entry, false);
}

void xts_decrypt(const xts_t *xts, uint32_t number, uint8_t entry[XTS_ENTRY_BYTES]) {
    run(xts, number, entry, true);
}
