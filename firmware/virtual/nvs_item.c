// SPDX-License-Identifier: MIT
// The items of the NVS: numbers, chunks and indexes, written, found and erased.
//
// Owns what an item looks like in entries. Never erases the old value of a key by itself.
#include "flash.h"
#include "nvs_store.h"

#include <string.h>

static void make_entry(entry_t *e, uint8_t ns, uint8_t type, int span, const char *key, uint8_t chunk) {
    memset(e, 0xff, sizeof(*e));
    e->ns = ns;
    e->type = type;
    e->span = (uint8_t)span;
    e->chunk = chunk;
    memset(e->key, 0, sizeof(e->key));
    for (int i = 0; i < KEY_MAX && key[i] != '\0'; i++) {
        e->key[i] = key[i];
    }
}

int nvs_write_item(page_t *p, uint8_t ns, uint8_t type, const char *key, const void *data,
    size_t len, uint8_t chunk) {
    if (p->state == PAGE_BLANK) {
        TRY(nvs_begin_page(p));
    }
    if (p->state != PAGE_ACTIVE) {
        return NVS_ERR_PAGE_FULL;
    }
    if (strlen(key) > KEY_MAX) {
        return NVS_ERR_KEY_TOO_LONG;
    }
    int span = 1;
    if (nvs_has_data(type)) {
        span += (int)((len + ENTRY_SIZE - 1) / ENTRY_SIZE);
    }
    if (p->next_free + span > ENTRY_COUNT) {
        return NVS_ERR_PAGE_FULL;
    }
    entry_t e;
    make_entry(&e, ns, type, span, key, chunk);
    if (nvs_has_data(type)) {
        e.data[0] = (uint8_t)len;
        e.data[1] = (uint8_t)(len >> 8);
        put_le32(e.data + 4, ~nvs_crc_add(CRC_BEGIN, data, len));
    } else {
        memcpy(e.data, data, len);
    }
    put_le32(e.crc, nvs_entry_crc(&e));
    int at = p->next_free;
    TRY(nvs_write_entry(p, &e));
    if (nvs_has_data(type)) {
        size_t whole = len / ENTRY_SIZE * ENTRY_SIZE;
        if (whole > 0) {
            int count = (int)(whole / ENTRY_SIZE);
            TRY(nvs_program_entries(p, data, count));
            TRY(nvs_set_states(p, p->next_free, p->next_free + count, STATE_WRITTEN));
            p->next_free += count;
        }
        if (len > whole) {
            uint8_t tail[ENTRY_SIZE];
            memset(tail, 0xff, sizeof(tail));
            memcpy(tail, (const uint8_t *)data + whole, len - whole);
            TRY(nvs_write_entry(p, tail));
        }
    }
    p->span[at] = (uint8_t)span;
    p->used += span;
    return BOARD_OK;
}

// Walks the items, oldest first. `at->page` NULL: begin. False at the end.
bool nvs_next_item(place_t *at, entry_t *e) {
    unsigned position;
    int index;
    if (at->page == NULL) {
        position = 0;
        index = 0;
    } else {
        position = at->order / ENTRY_COUNT;
        index = at->index + 1;
    }
    for (; position < nvs_store.list_len; position++, index = 0) {
        page_t *p = nvs_listed(position);
        for (; index < ENTRY_COUNT; index++) {
            if (p->span[index] != 0 && nvs_read_entry(p, index, e) == BOARD_OK) {
                at->page = p;
                at->index = index;
                at->order = position * ENTRY_COUNT + (unsigned)index;
                return true;
            }
        }
    }
    return false;
}

bool nvs_same_key(const entry_t *e, uint8_t ns, const char *key) {
    return e->ns == ns && strncmp(e->key, key, KEY_MAX) == 0;
}

// The item of that type. For chunks, `chunk` is its number; of several the newest.
bool nvs_find(uint8_t ns, uint8_t type, const char *key, uint8_t chunk, place_t *place, entry_t *e) {
    place_t at = { 0 };
    entry_t seen;
    bool found = false;
    while (nvs_next_item(&at, &seen)) {
        if (seen.type == type && seen.chunk == chunk && nvs_same_key(&seen, ns, key)
            && le32(seen.crc) == nvs_entry_crc(&seen)) {
            *place = at;
            *e = seen;
            found = true;
        }
    }
    return found;
}

// The value of a key whatever its type: everything but chunks.
bool nvs_find_value(uint8_t ns, const char *key, place_t *place, entry_t *e) {
    place_t at = { 0 };
    entry_t seen;
    bool found = false;
    while (nvs_next_item(&at, &seen)) {
        if (seen.type != TYPE_CHUNK && nvs_same_key(&seen, ns, key)
            && le32(seen.crc) == nvs_entry_crc(&seen)) {
            *place = at;
            *e = seen;
            found = true;
        }
    }
    return found;
}

uint32_t nvs_index_size(const entry_t *e) {
    return le32(e->data);
}

// Reads the blob that an index entry stands for. `out` NULL: only checks that it is whole.
int nvs_read_blob(const entry_t *index, uint8_t *out) {
    char key[16];
    memcpy(key, index->key, sizeof(key));
    key[KEY_MAX] = '\0';
    uint32_t size = nvs_index_size(index);
    uint32_t done = 0;
    for (unsigned n = 0; n < index->data[4]; n++) {
        place_t at;
        entry_t e;
        if (!nvs_find(index->ns, TYPE_CHUNK, key, (uint8_t)(index->data[5] + n), &at, &e)
            || nvs_data_size(&e) > size - done || !nvs_data_intact(at.page, at.index, &e)) {
            return NVS_ERR_NOT_FOUND;
        }
        if (out != NULL) {
            TRY(nvs_read_data(at.page, at.index + 1, out + done, nvs_data_size(&e)));
        }
        done += nvs_data_size(&e);
    }
    return done == size ? BOARD_OK : NVS_ERR_NOT_FOUND;
}

// Erases the chunks of a key from number `first` up to before `end`.
int nvs_erase_chunks(uint8_t ns, const char *key, unsigned first, unsigned end) {
    place_t at = { 0 };
    entry_t e;
    while (nvs_next_item(&at, &e)) {
        if (e.type == TYPE_CHUNK && e.chunk >= first && e.chunk < end && nvs_same_key(&e, ns, key)) {
            TRY(nvs_erase_item(at.page, at.index));
        }
    }
    return BOARD_OK;
}

int nvs_erase_value(const place_t *place, const entry_t *e) {
    TRY(nvs_erase_item(place->page, place->index));
    if (e->type != TYPE_INDEX) {
        return BOARD_OK;
    }
    char key[16];
    memcpy(key, e->key, sizeof(key));
    key[KEY_MAX] = '\0';
    return e->data[5] < CHUNK_SECOND ? nvs_erase_chunks(e->ns, key, 0, CHUNK_SECOND)
        : nvs_erase_chunks(e->ns, key, CHUNK_SECOND, CHUNK_NONE);
}

// After a new value was written: everything the key had before goes.
int nvs_erase_older(uint8_t ns, const char *key, unsigned order) {
    place_t at = { 0 };
    entry_t e;
    while (nvs_next_item(&at, &e)) {
        if (e.type != TYPE_CHUNK && at.order < order && nvs_same_key(&e, ns, key)) {
            TRY(nvs_erase_value(&at, &e));
        }
    }
    return BOARD_OK;
}
