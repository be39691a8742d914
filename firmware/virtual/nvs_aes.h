// SPDX-License-Identifier: MIT
// AES-256 in XTS mode, for one NVS entry of 32 bytes at a time.
//
// Owns nothing but the expanded keys in the struct that it is given. Tables, so not for where
// somebody measures its time: the board is a simulation.
#ifndef OUTPOST_NVS_AES_H
#define OUTPOST_NVS_AES_H

#include <stdint.h>

#define XTS_KEY_BYTES 64
#define XTS_ENTRY_BYTES 32
#define AES_WORDS 60

typedef struct {
    uint32_t encrypt[AES_WORDS];    // round keys, of the first half of the key
    uint32_t decrypt[AES_WORDS];
    uint32_t tweak[AES_WORDS];      // of the second half
} xts_t;

void xts_begin(xts_t *xts, const uint8_t key[XTS_KEY_BYTES]);
// In place; `number` is the data unit's.
void xts_encrypt(const xts_t *xts, uint32_t number, uint8_t entry[XTS_ENTRY_BYTES]);
void xts_decrypt(const xts_t *xts, uint32_t number, uint8_t entry[XTS_ENTRY_BYTES]);

#endif
