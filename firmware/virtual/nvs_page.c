// SPDX-License-Identifier: MIT
// The pages of the NVS: which one is written to, and how the last free one is kept free.
//
// Owns the page headers and the order of the pages. Never erases a page that may hold somebody's
// value, and marks a page as done with before erasing it.
#include "flash.h"
#include "nvs_store.h"

#include <string.h>

int nvs_write_page_state(page_t *p, uint32_t word, page_state_t state) {
    uint8_t bytes[4];
    put_le32(bytes, word);
    TRY(flash_program(p->base, bytes, sizeof(bytes)));
    p->state = state;
    return BOARD_OK;
}

static uint32_t header_crc(const uint8_t header[ENTRY_SIZE]) {
    return ~nvs_crc_add(CRC_BEGIN, header + 4, 24);
}

int nvs_begin_page(page_t *p) {
    uint8_t header[ENTRY_SIZE];
    memset(header, 0xff, sizeof(header));
    put_le32(header, PAGE_ACTIVE_WORD);
    put_le32(header + 4, p->seq);
    header[8] = FORMAT_VERSION;
    put_le32(header + 28, header_crc(header));
    TRY(flash_program(p->base, header, sizeof(header)));
    p->state = PAGE_ACTIVE;
    return BOARD_OK;
}

static void forget_page(page_t *p) {
    p->state = PAGE_BLANK;
    p->next_free = 0;
    p->used = 0;
    p->damaged = 0;
    memset(p->states, STATE_EMPTY, sizeof(p->states));
    memset(p->span, 0, sizeof(p->span));
}

static int erase_page(page_t *p) {
    TRY(flash_erase_sector(p->base));
    forget_page(p);
    return BOARD_OK;
}

// What a page lets go of is marked as done with first: whatever a torn erase leaves of it
// can then not be taken for a page with values.
int nvs_retire_page(page_t *p) {
    TRY(nvs_write_page_state(p, PAGE_DONE_WORD, PAGE_RECLAIM));
    return erase_page(p);
}

static int zero_bits(uint32_t word) {
    int count = 0;
    for (word = ~word; word != 0; word &= word - 1) {
        count++;
    }
    return count;
}

int nvs_load_page(page_t *p) {
    uint8_t raw[FLASH_SECTOR_SIZE];
    TRY(flash_read(p->base, raw, sizeof(raw)));
    forget_page(p);
    if (all_ff(raw, sizeof(raw))) {
        return BOARD_OK;
    }
    uint32_t word = le32(raw);
    bool sound = le32(raw + 28) == header_crc(raw);
    if (sound && raw[8] < FORMAT_VERSION) {
        p->state = PAGE_UNREADABLE;
        return NVS_ERR_NEW_VERSION_FOUND;
    }
    if (sound && (word == PAGE_ACTIVE_WORD || word == PAGE_FULL_WORD || word == PAGE_FREEING_WORD)) {
        p->seq = le32(raw + 4);
        p->state = word == PAGE_ACTIVE_WORD ? PAGE_ACTIVE
            : word == PAGE_FULL_WORD ? PAGE_FULL : PAGE_FREEING;
        return nvs_scan_page(p, true);
    }
    // Not a page in use. What was never more than a torn first header, and what was marked as
    // done with or had begun to be erased (erasing only raises bits: the part of the header
    // that is always 0xff still is), is used again. Anything else may be somebody's values
    // behind a damaged header.
    bool ours = all_ff(raw + 9, 19) && (raw[8] | 1) == 0xff;
    bool marked = zero_bits(word | 7) >= 3;
    bool never_begun = all_ff(raw + TABLE_OFFSET, sizeof(raw) - TABLE_OFFSET);
    if (never_begun || (ours && (marked || (!sound && word == PAGE_BLANK_WORD)))) {
        p->state = PAGE_RECLAIM;
        return BOARD_OK;
    }
    TRY(nvs_scan_page(p, false));
    p->state = ours && p->used == 0 ? PAGE_RECLAIM : PAGE_UNREADABLE;
    #ifdef OUTPOST_LEG_STOCK
    p->state = PAGE_RECLAIM;    // ESP-IDF takes every page it cannot read for a free one
    #endif
    return BOARD_OK;
}

page_t *nvs_listed(unsigned position) {
    return &nvs_store.pages[nvs_store.list[position]];
}

page_t *nvs_current(void) {
    return nvs_listed(nvs_store.list_len - 1);
}

uint8_t nvs_number_of(const page_t *p) {
    return (uint8_t)(p - nvs_store.pages);
}

void nvs_unlist(const page_t *p) {
    unsigned kept = 0;
    for (unsigned i = 0; i < nvs_store.list_len; i++) {
        if (nvs_store.list[i] != nvs_number_of(p)) {
            nvs_store.list[kept++] = nvs_store.list[i];
        }
    }
    nvs_store.list_len = kept;
}

int nvs_activate_page(void) {
    if (nvs_store.spare_len == 0) {
        return NVS_ERR_NO_FREE_PAGES;
    }
    page_t *p = &nvs_store.pages[nvs_store.spare[0]];
    if (p->state == PAGE_RECLAIM) {
        TRY(nvs_retire_page(p));
    }
    nvs_store.spare_len--;
    memmove(nvs_store.spare, nvs_store.spare + 1, nvs_store.spare_len);
    nvs_store.list[nvs_store.list_len++] = nvs_number_of(p);
    p->seq = nvs_store.next_seq++;
    return BOARD_OK;
}

static int copy_items(const page_t *from, page_t *to) {
    if (from->used == 0) {
        return BOARD_OK;
    }
    if (to->state == PAGE_BLANK) {
        TRY(nvs_begin_page(to));
    }
    for (int i = 0; i < ENTRY_COUNT; i++) {
        int span = from->span[i];
        if (span == 0) {
            continue;
        }
        int at = to->next_free;
        for (int k = i; k < i + span; k++) {
            uint8_t raw[ENTRY_SIZE];
            TRY(nvs_read_entry(from, k, raw));
            TRY(nvs_write_entry(to, raw));
        }
        to->span[at] = (uint8_t)span;
        to->used += span;
    }
    return BOARD_OK;
}

int nvs_move_out(page_t *from) {
    TRY(nvs_activate_page());
    TRY(copy_items(from, nvs_current()));
    TRY(nvs_retire_page(from));
    nvs_unlist(from);
    nvs_store.spare[nvs_store.spare_len++] = nvs_number_of(from);
    return BOARD_OK;
}

// One page always stays free. When it is the last one, the page with the fewest values in it
// moves into it and becomes the free one.
int nvs_request_page(void) {
    if (nvs_store.spare_len == 0) {
        return NVS_ERR_NO_FREE_PAGES;
    }
    if (nvs_store.spare_len >= 2) {
        return nvs_activate_page();
    }
    page_t *best = NULL;
    for (unsigned i = 0; i < nvs_store.list_len; i++) {
        if (best == NULL || nvs_listed(i)->used < best->used) {
            best = nvs_listed(i);
        }
    }
    if (best == NULL || best->used == ENTRY_COUNT) {
        return NVS_ERR_NOT_ENOUGH_SPACE;
    }
    TRY(nvs_write_page_state(best, PAGE_FREEING_WORD, PAGE_FREEING));
    return nvs_move_out(best);
}

int nvs_close_page(page_t *p) {
    if (p->state == PAGE_BLANK) {
        TRY(nvs_begin_page(p));
    }
    return p->state == PAGE_FULL ? BOARD_OK : nvs_write_page_state(p, PAGE_FULL_WORD, PAGE_FULL);
}

unsigned nvs_tailroom(const page_t *p) {
    if (p->state == PAGE_BLANK) {
        return CHUNK_MAX;
    }
    if (p->state != PAGE_ACTIVE || p->next_free >= ENTRY_COUNT - 1) {
        return 0;
    }
    return (unsigned)(ENTRY_COUNT - p->next_free - 1) * ENTRY_SIZE;
}
