// SPDX-License-Identifier: MIT
// Loading the NVS at the start, and finishing what a power cut left half done.
//
// Owns the state that the other parts share (nvs_store), and the sentence on how it is. Never
// gives up a value that is whole.
#include "flash.h"
#include "nvs_aes.h"
#include "nvs_store.h"

#include <stdio.h>
#include <string.h>

nvs_store_t nvs_store;

static bool in_page(const entry_t *e, const page_t *from, int index, const page_t *p) {
    for (int i = 0; i < ENTRY_COUNT; i++) {
        entry_t other;
        if (p->span[i] == 0 || nvs_read_entry(p, i, &other) != BOARD_OK
            || memcmp(&other, e, sizeof(other)) != 0) {
            continue;
        }
        bool same = true;
        for (int k = 1; k < e->span && same; k++) {
            uint8_t a[ENTRY_SIZE], b[ENTRY_SIZE];
            same = nvs_read_entry(from, index + k, a) == BOARD_OK && nvs_read_entry(p, i + k, b) == BOARD_OK
                && memcmp(a, b, sizeof(a)) == 0;
        }
        if (same) {
            return true;
        }
    }
    return false;
}

// Is every whole item of `a` in `b` too (b NULL: in any page in use), the same to the byte?
static bool contained(const page_t *a, const page_t *b) {
    for (int i = 0; i < ENTRY_COUNT; i++) {
        entry_t e;
        if (a->span[i] == 0) {
            continue;
        }
        if (nvs_read_entry(a, i, &e) != BOARD_OK) {
            return false;
        }
        if (nvs_has_data(e.type) && !nvs_data_intact(a, i, &e)) {
            continue;       // nobody can read it
        }
        bool found = false;
        if (b != NULL) {
            found = in_page(&e, a, i, b);
        }
        for (unsigned k = 0; b == NULL && k < nvs_store.list_len && !found; k++) {
            found = in_page(&e, a, i, nvs_listed(k));
        }
        if (!found) {
            return false;
        }
    }
    return true;
}

static void insert_by_seq(uint8_t number) {
    unsigned at = nvs_store.list_len;
    while (at > 0 && nvs_listed(at - 1)->seq > nvs_store.pages[number].seq) {
        nvs_store.list[at] = nvs_store.list[at - 1];
        at--;
    }
    nvs_store.list[at] = number;
    nvs_store.list_len++;
}

// The power went while a page was moving into the last free one.
static int finish_move(page_t *from) {
    page_t *to = nvs_current();
    if (to != from && to->state == PAGE_ACTIVE) {
        if (!contained(to, from)) {
            // The last page has values of its own: no move was under way, only the page's
            // state is damaged. It goes on as a full page.
            from->state = PAGE_FULL;
            return BOARD_OK;
        }
        if (contained(from, to)) {
            TRY(nvs_retire_page(from));
            nvs_unlist(from);
            nvs_store.spare[nvs_store.spare_len++] = nvs_number_of(from);
            return BOARD_OK;
        }
        TRY(nvs_retire_page(to));
        nvs_unlist(to);
        nvs_store.spare[nvs_store.spare_len++] = nvs_number_of(to);
    }
    if (nvs_store.spare_len == 0) {
        from->state = PAGE_FULL;
        return BOARD_OK;
    }
    return nvs_move_out(from);
}

// The power went after a new value was written and before the old one was erased.
static int drop_superseded(void) {
    place_t at = { 0 };
    entry_t e;
    while (nvs_next_item(&at, &e)) {
        if (e.type == TYPE_CHUNK) {
            continue;
        }
        place_t newest;
        entry_t other;
        char key[16];
        memcpy(key, e.key, sizeof(key));
        key[KEY_MAX] = '\0';
        if (!nvs_find_value(e.ns, key, &newest, &other) || newest.order <= at.order) {
            continue;
        }
        if (other.type == TYPE_INDEX && nvs_read_blob(&other, NULL) != BOARD_OK
            && (e.type != TYPE_INDEX || nvs_read_blob(&e, NULL) == BOARD_OK)) {
            TRY(nvs_erase_value(&newest, &other));      // damaged: the older one is better
        } else {
            TRY(nvs_erase_value(&at, &e));
        }
    }
    return BOARD_OK;
}

// The power went before the index that makes chunks count was written, or after it was erased.
static int drop_orphans(void) {
    place_t at = { 0 };
    entry_t e;
    while (nvs_next_item(&at, &e)) {
        if (e.type != TYPE_CHUNK) {
            continue;
        }
        place_t owner;
        entry_t index;
        char key[16];
        memcpy(key, e.key, sizeof(key));
        key[KEY_MAX] = '\0';
        if (!nvs_find(e.ns, TYPE_INDEX, key, CHUNK_NONE, &owner, &index)
            || e.chunk < index.data[5] || e.chunk >= index.data[5] + index.data[4]) {
            TRY(nvs_erase_item(at.page, at.index));
        }
    }
    return BOARD_OK;
}

static unsigned count_state(page_state_t state) {
    unsigned count = 0;
    for (unsigned i = 0; i < nvs_store.count; i++) {
        count += nvs_store.pages[i].state == state ? 1 : 0;
    }
    return count;
}

static int load(void) {
    for (unsigned i = 0; i < nvs_store.count; i++) {
        page_t *p = &nvs_store.pages[i];
        TRY(nvs_load_page(p));
        if (p->state == PAGE_BLANK || p->state == PAGE_RECLAIM) {
            nvs_store.spare[nvs_store.spare_len++] = (uint8_t)i;
        } else if (p->state != PAGE_UNREADABLE) {
            insert_by_seq((uint8_t)i);
        }
    }
    if (nvs_store.list_len > 0) {
        nvs_store.next_seq = nvs_current()->seq + 1;
    }
    for (unsigned i = 0; i < nvs_store.count; i++) {
        page_t *p = &nvs_store.pages[i];
        if (p->state == PAGE_UNREADABLE && p->used > 0 && contained(p, NULL)) {
            // Marked as done with, but the mark was torn: now it is made whole.
            TRY(nvs_write_page_state(p, PAGE_DONE_WORD, PAGE_RECLAIM));
            nvs_store.spare[nvs_store.spare_len++] = (uint8_t)i;
        }
    }
    for (unsigned i = 0; i < nvs_store.list_len; i++) {
        if (nvs_listed(i)->state == PAGE_FREEING) {
            TRY(finish_move(nvs_listed(i)));
            i = (unsigned)-1;       // the list has changed; no page of it is taken twice
        }
    }
    TRY(drop_superseded());
    if (count_state(PAGE_UNREADABLE) == 0) {
        TRY(drop_orphans());
    }
    if (nvs_store.spare_len == 0) {
        // A full page without a single value in it serves as the free one.
        for (unsigned i = 0; i + 1 < nvs_store.list_len; i++) {
            if (nvs_listed(i)->used == 0) {
                page_t *p = nvs_listed(i);
                p->state = PAGE_RECLAIM;
                nvs_unlist(p);
                nvs_store.spare[nvs_store.spare_len++] = nvs_number_of(p);
                break;
            }
        }
    }
    if (nvs_store.list_len == 0) {
        return nvs_activate_page();
    }
    return nvs_store.spare_len == 0 ? NVS_ERR_NO_FREE_PAGES : BOARD_OK;
}

int nvs_init(uint32_t offset, uint32_t size) {
    nvs_deinit();
    nvs_store.count = size / FLASH_SECTOR_SIZE;
    if (offset % FLASH_SECTOR_SIZE != 0 || size % FLASH_SECTOR_SIZE != 0
        || nvs_store.count < 3 || nvs_store.count > NVS_MAX_PAGES) {
        nvs_store.count = 0;
        nvs_store.error = BOARD_ERR_INVALID_SIZE;
        return nvs_store.error;
    }
    for (unsigned i = 0; i < nvs_store.count; i++) {
        nvs_store.pages[i].base = offset + i * FLASH_SECTOR_SIZE;
    }
    nvs_store.error = load();
    nvs_store.ready = nvs_store.error == BOARD_OK
        || (nvs_store.error == NVS_ERR_NO_FREE_PAGES && nvs_store.list_len > 0);
    return nvs_store.error;
}

void nvs_deinit(void) {
    memset(&nvs_store, 0, sizeof(nvs_store));
    nvs_store.error = NVS_ERR_NOT_INITIALIZED;
}

#ifndef OUTPOST_LEG_STOCK
// The partition of the keys holds 64 bytes and their CRC. A board without one has a plain NVS.
static int take_key(void) {
    const flash_partition_t *p = flash_partition_find(FLASH_TYPE_DATA, FLASH_SUBTYPE_NVS_KEYS, NULL);
    nvs_set_key(NULL);
    if (p == NULL) {
        return BOARD_OK;
    }
    uint8_t keys[XTS_KEY_BYTES + 4];
    TRY(flash_partition_read(p, 0, keys, sizeof(keys)));
    int err = BOARD_OK;
    if (all_ff(keys, sizeof(keys))) {
        err = NVS_ERR_KEYS_NOT_INITIALIZED;
    } else if (le32(keys + XTS_KEY_BYTES) != ~nvs_crc_add(CRC_BEGIN, keys, XTS_KEY_BYTES)) {
        err = NVS_ERR_CORRUPT_KEY_PART;
    } else {
        nvs_set_key(keys);
    }
    memset(keys, 0, sizeof(keys));
    return err;
}
#endif

int nvs_start(void) {
    #ifndef OUTPOST_LEG_STOCK
    int key_error = take_key();
    if (key_error != BOARD_OK) {
        nvs_deinit();
        nvs_store.error = key_error;
        return key_error;
    }
    #endif
    const flash_partition_t *p = flash_partition_find(FLASH_TYPE_DATA, FLASH_SUBTYPE_NVS, "nvs");
    if (p == NULL) {
        nvs_deinit();
        nvs_store.error = NVS_ERR_PART_NOT_FOUND;
        return nvs_store.error;
    }
    int err = nvs_init(p->offset, p->size);
    #ifdef OUTPOST_LEG_STOCK
    if (err == NVS_ERR_NO_FREE_PAGES || err == NVS_ERR_NEW_VERSION_FOUND) {
        TRY(flash_partition_erase(p, 0, p->size));
        err = nvs_init(p->offset, p->size);
    }
    #endif
    return err == NVS_ERR_NO_FREE_PAGES ? BOARD_OK : err;
}

void nvs_status(nvs_status_t *status) {
    memset(status, 0, sizeof(*status));
    status->error = nvs_store.error;
    status->pages = nvs_store.count;
    status->pages_free = nvs_store.spare_len;
    status->pages_unreadable = count_state(PAGE_UNREADABLE);
    for (unsigned i = 0; i < nvs_store.list_len; i++) {
        status->entries_damaged += nvs_listed(i)->damaged;
        status->entries_used += (unsigned)nvs_listed(i)->used;
    }
    char *text = status->sentence;
    size_t room = sizeof(status->sentence);
    if (nvs_store.error == NVS_ERR_PART_NOT_FOUND) {
        snprintf(text, room, "there is no partition named nvs");
    } else if (nvs_store.error == NVS_ERR_KEYS_NOT_INITIALIZED) {
        snprintf(text, room, "the partition of the NVS keys is empty: make the image with its keys");
    } else if (nvs_store.error == NVS_ERR_CORRUPT_KEY_PART) {
        snprintf(text, room, "the partition of the NVS keys is damaged: nothing in the NVS can be read");
    } else if (nvs_store.error == NVS_ERR_NEW_VERSION_FOUND) {
        snprintf(text, room, "the NVS was written in a newer format; nothing in it is used");
    } else if (nvs_store.error == NVS_ERR_NO_FREE_PAGES && nvs_store.list_len == 0) {
        snprintf(text, room, "the NVS is corrupt: none of its %u pages can be read; it was left as it is",
            nvs_store.count);
    } else if (nvs_store.error == NVS_ERR_NO_FREE_PAGES) {
        snprintf(text, room, "the NVS has no free page (%u of %u cannot be read): it can be read, not written",
            status->pages_unreadable, nvs_store.count);
    } else if (nvs_store.error != BOARD_OK) {
        snprintf(text, room, "the NVS cannot be used: %s", board_err_name(nvs_store.error));
    } else if (status->pages_unreadable > 0) {
        snprintf(text, room, "%u of %u NVS pages cannot be read and were left as they are; keys may be missing",
            status->pages_unreadable, nvs_store.count);
    } else if (status->entries_damaged > 0) {
        snprintf(text, room, "%u NVS entries are damaged; keys may be missing", status->entries_damaged);
    }
}
