// SPDX-License-Identifier: MIT
// MD5 (RFC 1321): the partition table carries one, and nothing else here needs it.
#ifndef OUTPOST_MD5_H
#define OUTPOST_MD5_H

#include <stddef.h>
#include <stdint.h>

void md5(const uint8_t *data, size_t len, uint8_t digest[16]);

#endif
