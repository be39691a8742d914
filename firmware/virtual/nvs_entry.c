// SPDX-License-Identifier: MIT
// The entries of one NVS page: their states, their CRCs, and what a page holds when it is read.
//
// Owns the reading and writing of entries in flash, and the key that they are encrypted with where
// there is one: each by itself, by its place in the partition. Page headers and entry states are in
// the clear, as ESP-IDF has them. Never decides which page is written to: that is nvs_page.c.
#include "flash.h"
#include "nvs_aes.h"
#include "nvs_store.h"

#include <string.h>

// The CRC-32 of Ethernet, four bits at a time, begun as Espressif's ROM does with 0xffffffff.
uint32_t nvs_crc_add(uint32_t crc, const void *data, size_t len) {
    static const uint32_t nibble[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158,
        0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4,
        0xa00ae278, 0xbdbdf21c,
    };
    const uint8_t *p = data;
    while (len-- > 0) {
        crc ^= *p++;
        crc = crc >> 4 ^ nibble[crc & 15];
        crc = crc >> 4 ^ nibble[crc & 15];
    }
    return crc;
}

uint32_t nvs_entry_crc(const entry_t *e) {
    uint32_t crc = nvs_crc_add(CRC_BEGIN, e, 4);
    crc = nvs_crc_add(crc, e->key, sizeof(e->key));
    return ~nvs_crc_add(crc, e->data, sizeof(e->data));
}

bool nvs_has_data(uint8_t type) {
    return type == TYPE_CHUNK || type == TYPE_BLOB_V1 || type == TYPE_STRING;
}

unsigned nvs_data_size(const entry_t *e) {
    return (unsigned)e->data[0] | (unsigned)e->data[1] << 8;
}

static uint32_t data_crc(const entry_t *e) {
    return le32(e->data + 4);
}

uint32_t nvs_entry_address(const page_t *p, int index) {
    return p->base + ENTRIES_OFFSET + (uint32_t)index * ENTRY_SIZE;
}

static xts_t cipher;
static bool encrypted;

void nvs_set_key(const uint8_t *key) {
    encrypted = key != NULL;
    memset(&cipher, 0, sizeof(cipher));
    if (encrypted) {
        xts_begin(&cipher, key);
    }
}

// The data unit is the entry's place in the partition.
static uint32_t unit_of(const page_t *p, int index) {
    return nvs_entry_address(p, index) - nvs_store.pages[0].base;
}

static int read_raw(const page_t *p, int index, void *entry) {
    return flash_read(nvs_entry_address(p, index), entry, ENTRY_SIZE);
}

int nvs_read_entry(const page_t *p, int index, void *entry) {
    TRY(read_raw(p, index, entry));
    if (encrypted) {
        xts_decrypt(&cipher, unit_of(p, index), entry);
    }
    return BOARD_OK;
}

int nvs_read_data(const page_t *p, int index, uint8_t *out, size_t len) {
    for (size_t done = 0; done < len; done += ENTRY_SIZE, index++) {
        uint8_t part[ENTRY_SIZE];
        TRY(nvs_read_entry(p, index, part));
        memcpy(out + done, part, len - done < ENTRY_SIZE ? len - done : ENTRY_SIZE);
    }
    return BOARD_OK;
}

static int write_states(page_t *p, int word) {
    uint32_t value = 0;
    for (int i = 0; i < 16; i++) {
        int index = word * 16 + i;
        uint32_t state = index < ENTRY_COUNT ? p->states[index] : STATE_EMPTY;
        value |= state << (2 * i);
    }
    uint8_t bytes[4];
    put_le32(bytes, value);
    return flash_program(p->base + TABLE_OFFSET + (uint32_t)word * 4, bytes, sizeof(bytes));
}

int nvs_set_states(page_t *p, int begin, int end, uint8_t state) {
    for (int word = (end - 1) / 16; word >= begin / 16; word--) {
        for (int i = 0; i < 16; i++) {
            int index = word * 16 + i;
            if (index >= begin && index < end) {
                p->states[index] = state;
            }
        }
        TRY(write_states(p, word));
    }
    return BOARD_OK;
}

int nvs_program_entries(const page_t *p, const uint8_t *entries, int count) {
    if (!encrypted) {
        return flash_program(nvs_entry_address(p, p->next_free), entries, (size_t)count * ENTRY_SIZE);
    }
    for (int i = 0; i < count; i++) {
        uint8_t hidden[ENTRY_SIZE];
        memcpy(hidden, entries + (size_t)i * ENTRY_SIZE, sizeof(hidden));
        xts_encrypt(&cipher, unit_of(p, p->next_free + i), hidden);
        TRY(flash_program(nvs_entry_address(p, p->next_free + i), hidden, sizeof(hidden)));
    }
    return BOARD_OK;
}

int nvs_write_entry(page_t *p, const void *entry) {
    TRY(nvs_program_entries(p, entry, 1));
    TRY(nvs_set_states(p, p->next_free, p->next_free + 1, STATE_WRITTEN));
    p->next_free++;
    return BOARD_OK;
}

// The entry an item begins with goes last, in a program of its own: as long as it is there, what
// follows it is known to be data, and is never read as entries.
static int erase_entries(page_t *p, int index, int span) {
    // An empty state has two bits to lose; lost one by one in this order they never make it
    // look like a written one.
    for (int i = index; i < index + span; i++) {
        if (p->states[i] == STATE_EMPTY) {
            TRY(nvs_set_states(p, i, i + 1, STATE_ILLEGAL));
        }
    }
    if (span > 1) {
        TRY(nvs_set_states(p, index + 1, index + span, STATE_ERASED));
    }
    return nvs_set_states(p, index, index + 1, STATE_ERASED);
}

int nvs_erase_item(page_t *p, int index) {
    int span = p->span[index];
    p->span[index] = 0;
    p->used -= span;
    return erase_entries(p, index, span);
}

// CRC of the data that follows an entry, compared with what the entry says.
bool nvs_data_intact(const page_t *p, int index, const entry_t *e) {
    uint8_t part[ENTRY_SIZE];
    uint32_t crc = CRC_BEGIN;
    size_t left = nvs_data_size(e);
    for (int i = index + 1; left > 0; i++) {
        size_t len = left < ENTRY_SIZE ? left : ENTRY_SIZE;
        if (nvs_read_entry(p, i, part) != BOARD_OK) {
            return false;
        }
        crc = nvs_crc_add(crc, part, len);
        left -= len;
    }
    return ~crc == data_crc(e);
}

// How many entries the item takes that begins with this entry; 0 where it makes no sense.
static int item_span(const entry_t *e, int index) {
    if (le32(e->crc) != nvs_entry_crc(e) || index + e->span > ENTRY_COUNT) {
        return 0;
    }
    unsigned want = 1;
    if (nvs_has_data(e->type)) {
        if (nvs_data_size(e) > CHUNK_MAX) {
            return 0;
        }
        want += (nvs_data_size(e) + ENTRY_SIZE - 1) / ENTRY_SIZE;
    }
    return e->span == want ? e->span : 0;
}

static bool span_written(const page_t *p, int index, int span) {
    for (int i = index; i < index + span; i++) {
        if (p->states[i] != STATE_WRITTEN) {
            return false;
        }
    }
    return true;
}

// Reads the state table and finds the items. `mend`: finishes what a power cut left half done.
int nvs_scan_page(page_t *p, bool mend) {
    uint8_t table[ENTRY_SIZE];
    TRY(flash_read(p->base + TABLE_OFFSET, table, sizeof(table)));
    int last = -1;
    bool torn[8] = { false };
    for (int i = 0; i < ENTRY_COUNT; i++) {
        p->states[i] = table[i / 4] >> (i % 4 * 2) & 3;
        if (p->states[i] == STATE_ILLEGAL) {
            p->states[i] = STATE_ERASED;    // half of the change from empty to erased
            torn[i / 16] = true;
        }
        if (p->states[i] != STATE_EMPTY) {
            last = i;
        }
    }
    for (int word = 0; mend && word < 8; word++) {
        if (torn[word]) {
            TRY(write_states(p, word));
        }
    }
    memset(p->span, 0, sizeof(p->span));
    p->used = 0;
    p->damaged = 0;
    for (int i = 0; i < ENTRY_COUNT;) {
        entry_t e;
        if (p->states[i] != STATE_WRITTEN) {
            i++;
            continue;
        }
        TRY(nvs_read_entry(p, i, &e));
        int span = item_span(&e, i);
        if (span == 0) {
            p->damaged++;
            i++;
        } else if (span_written(p, i, span)) {
            p->span[i] = (uint8_t)span;
            p->used += span;
            if (nvs_has_data(e.type) && !nvs_data_intact(p, i, &e)) {
                p->damaged++;
            }
            i += span;
        } else {
            // Written in part, or erased in part.
            if (mend) {
                TRY(erase_entries(p, i, span));
            }
            if (last < i + span - 1) {
                last = i + span - 1;
            }
            i += span;
        }
    }
    p->next_free = last + 1;
    while (mend && p->state == PAGE_ACTIVE && p->next_free < ENTRY_COUNT) {
        // The entry's bytes may be there though its state was never written.
        uint8_t raw[ENTRY_SIZE];
        TRY(read_raw(p, p->next_free, raw));
        if (all_ff(raw, sizeof(raw))) {
            break;
        }
        TRY(erase_entries(p, p->next_free, 1));
        p->next_free++;
    }
    return BOARD_OK;
}
