// SPDX-License-Identifier: MIT
// Counts what the TLS stack takes of the C heap, byte for byte as asked for.
//
// Owns two counters. Where tlspolicy is linked in, its own counters answer instead (the weak
// name below gives way). Never limits anything.
#include <stdint.h>
#include <stdlib.h>

#include "board.h"

// Sixteen bytes keep what follows aligned for every type.
typedef union {
    size_t size;
    char align[16];
} header_t;

static size_t held;
static size_t most;

void *board_cheap_calloc(size_t count, size_t size) {
    if (size != 0 && count > (SIZE_MAX - sizeof(header_t)) / size) {
        return NULL;
    }
    header_t *header = calloc(1, sizeof(header_t) + count * size);
    if (header == NULL) {
        return NULL;
    }
    header->size = count * size;
    held += header->size;
    if (held > most) {
        most = held;
    }
    return header + 1;
}

void board_cheap_free(void *block) {
    if (block == NULL) {
        return;
    }
    header_t *header = (header_t *)block - 1;
    held -= header->size;
    free(header);
}

__attribute__((weak)) void board_cheap_counts(size_t *now, size_t *peak) {
    *now = held;
    *peak = most;
}
