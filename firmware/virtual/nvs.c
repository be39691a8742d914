// SPDX-License-Identifier: MIT
// Espressif's NVS format on the board's flash; see nvs.h for what it promises.
//
// Owns the pages of one NVS partition. Behaves as ESP-IDF 5.4 does where that can be seen
// from outside: which page is taken next, how a blob is cut into chunks, when it is full.
// It differs in what it does with damage: it never erases a page that may hold somebody's
// value, and marks a page as done with before erasing it, so that a torn erase can be told
// from a damaged page. Never allocates memory.
//
// A page: 32 bytes of header, 32 bytes of entry states (2 bits each), 126 entries of 32 bytes.
// A value takes one entry (numbers), or one and its data (a chunk of a blob, a string). A blob
// is its chunks and then, last, the index entry that makes them count. An update writes the
// new value whole and then marks the old one erased; its chunks are numbered from 0 or from
// 128 in turn, so that old and new can stand side by side.
#include "nvs.h"
#include "flash.h"

#include <stdio.h>
#include <string.h>

#define ENTRY_SIZE 32u
#define ENTRY_COUNT 126
#define TABLE_OFFSET 32u
#define ENTRIES_OFFSET 64u
#define CHUNK_MAX (ENTRY_SIZE * (ENTRY_COUNT - 1))
#define KEY_MAX 15
#define FORMAT_VERSION 0xfeu    // counts downwards

enum { STATE_ERASED = 0, STATE_ILLEGAL = 1, STATE_WRITTEN = 2, STATE_EMPTY = 3 };

#define PAGE_BLANK_WORD 0xffffffffu
#define PAGE_ACTIVE_WORD 0xfffffffeu
#define PAGE_FULL_WORD 0xfffffffcu
#define PAGE_FREEING_WORD 0xfffffff8u
#define PAGE_DONE_WORD 0u       // ESP-IDF takes it for a corrupt page, that is a free one

enum { TYPE_U8 = 0x01, TYPE_I32 = 0x14, TYPE_BLOB_V1 = 0x41, TYPE_CHUNK = 0x42, TYPE_INDEX = 0x48,
       TYPE_STRING = 0x21 };
#define CHUNK_NONE 0xff
#define CHUNK_SECOND 0x80       // first chunk number of the other version of a blob

typedef enum {
    PAGE_BLANK,         // erased; in the list of pages: chosen but not yet begun
    PAGE_ACTIVE,
    PAGE_FULL,
    PAGE_FREEING,
    PAGE_RECLAIM,       // nothing of worth in it: erased before it is used again
    PAGE_UNREADABLE,    // left alone
} page_state_t;

// Every field is bytes, so that the same struct is the layout in flash.
typedef struct {
    uint8_t ns;
    uint8_t type;
    uint8_t span;
    uint8_t chunk;
    uint8_t crc[4];
    char key[16];
    uint8_t data[8];
} entry_t;

typedef struct {
    uint32_t base;
    uint32_t seq;
    page_state_t state;
    int next_free;
    int used;                       // entries of valid items
    unsigned damaged;               // entries in it whose CRC was wrong at the start
    uint8_t states[ENTRY_COUNT];
    uint8_t span[ENTRY_COUNT];      // of the valid item that begins here; 0: none does
} page_t;

static struct {
    bool ready;
    int error;
    unsigned count;
    uint32_t next_seq;
    page_t pages[NVS_MAX_PAGES];
    uint8_t list[NVS_MAX_PAGES];    // pages in use, oldest first; the last one is written to
    unsigned list_len;
    uint8_t spare[NVS_MAX_PAGES];   // free pages, the next to be taken first
    unsigned spare_len;
} store;

// A place: page number and entry. `order` grows with the age of what is written there.
typedef struct {
    page_t *page;
    int index;
    unsigned order;
} place_t;

#define TRY(call) do { int err_ = (call); if (err_ != BOARD_OK) { return err_; } } while (0)

// ---- bytes

static uint32_t le32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put_le32(uint8_t *p, uint32_t value) {
    p[0] = (uint8_t)value;
    p[1] = (uint8_t)(value >> 8);
    p[2] = (uint8_t)(value >> 16);
    p[3] = (uint8_t)(value >> 24);
}

static bool blank(const uint8_t *p, size_t len) {
    for (size_t i = 0; i < len; i++) {
        if (p[i] != 0xff) {
            return false;
        }
    }
    return true;
}

// The CRC-32 of Ethernet, four bits at a time, begun as Espressif's ROM does with 0xffffffff.
#define CRC_BEGIN 0u
static uint32_t crc_add(uint32_t crc, const void *data, size_t len) {
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

static uint32_t entry_crc(const entry_t *e) {
    uint32_t crc = crc_add(CRC_BEGIN, e, 4);
    crc = crc_add(crc, e->key, sizeof(e->key));
    return ~crc_add(crc, e->data, sizeof(e->data));
}

static bool has_data(uint8_t type) {
    return type == TYPE_CHUNK || type == TYPE_BLOB_V1 || type == TYPE_STRING;
}

static unsigned data_size(const entry_t *e) {
    return (unsigned)e->data[0] | (unsigned)e->data[1] << 8;
}

static uint32_t data_crc(const entry_t *e) {
    return le32(e->data + 4);
}

// ---- entries of a page

static uint32_t entry_address(const page_t *p, int index) {
    return p->base + ENTRIES_OFFSET + (uint32_t)index * ENTRY_SIZE;
}

static int read_entry(const page_t *p, int index, void *entry) {
    return flash_read(entry_address(p, index), entry, ENTRY_SIZE);
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

static int set_states(page_t *p, int begin, int end, uint8_t state) {
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

static int write_entry(page_t *p, const void *entry) {
    TRY(flash_program(entry_address(p, p->next_free), entry, ENTRY_SIZE));
    TRY(set_states(p, p->next_free, p->next_free + 1, STATE_WRITTEN));
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
            TRY(set_states(p, i, i + 1, STATE_ILLEGAL));
        }
    }
    if (span > 1) {
        TRY(set_states(p, index + 1, index + span, STATE_ERASED));
    }
    return set_states(p, index, index + 1, STATE_ERASED);
}

static int erase_item(page_t *p, int index) {
    int span = p->span[index];
    p->span[index] = 0;
    p->used -= span;
    return erase_entries(p, index, span);
}

// CRC of the data that follows an entry, compared with what the entry says.
static bool data_intact(const page_t *p, int index, const entry_t *e) {
    uint8_t part[ENTRY_SIZE];
    uint32_t crc = CRC_BEGIN;
    size_t left = data_size(e);
    for (int i = index + 1; left > 0; i++) {
        size_t len = left < ENTRY_SIZE ? left : ENTRY_SIZE;
        if (read_entry(p, i, part) != BOARD_OK) {
            return false;
        }
        crc = crc_add(crc, part, len);
        left -= len;
    }
    return ~crc == data_crc(e);
}

// How many entries the item takes that begins with this entry; 0 where it makes no sense.
static int item_span(const entry_t *e, int index) {
    if (le32(e->crc) != entry_crc(e) || index + e->span > ENTRY_COUNT) {
        return 0;
    }
    unsigned want = 1;
    if (has_data(e->type)) {
        if (data_size(e) > CHUNK_MAX) {
            return 0;
        }
        want += (data_size(e) + ENTRY_SIZE - 1) / ENTRY_SIZE;
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
static int scan_page(page_t *p, bool mend) {
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
        TRY(read_entry(p, i, &e));
        int span = item_span(&e, i);
        if (span == 0) {
            p->damaged++;
            i++;
        } else if (span_written(p, i, span)) {
            p->span[i] = (uint8_t)span;
            p->used += span;
            if (has_data(e.type) && !data_intact(p, i, &e)) {
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
        TRY(read_entry(p, p->next_free, raw));
        if (blank(raw, sizeof(raw))) {
            break;
        }
        TRY(erase_entries(p, p->next_free, 1));
        p->next_free++;
    }
    return BOARD_OK;
}

// ---- pages

static int write_page_state(page_t *p, uint32_t word, page_state_t state) {
    uint8_t bytes[4];
    put_le32(bytes, word);
    TRY(flash_program(p->base, bytes, sizeof(bytes)));
    p->state = state;
    return BOARD_OK;
}

static uint32_t header_crc(const uint8_t header[ENTRY_SIZE]) {
    return ~crc_add(CRC_BEGIN, header + 4, 24);
}

static int begin_page(page_t *p) {
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
static int retire_page(page_t *p) {
    TRY(write_page_state(p, PAGE_DONE_WORD, PAGE_RECLAIM));
    return erase_page(p);
}

static int zero_bits(uint32_t word) {
    int count = 0;
    for (word = ~word; word != 0; word &= word - 1) {
        count++;
    }
    return count;
}

static int load_page(page_t *p) {
    uint8_t raw[FLASH_SECTOR_SIZE];
    TRY(flash_read(p->base, raw, sizeof(raw)));
    forget_page(p);
    if (blank(raw, sizeof(raw))) {
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
        return scan_page(p, true);
    }
    // Not a page in use. What was never more than a torn first header, and what was marked as
    // done with or had begun to be erased (erasing only raises bits: the part of the header
    // that is always 0xff still is), is used again. Anything else may be somebody's values
    // behind a damaged header.
    bool ours = blank(raw + 9, 19) && (raw[8] | 1) == 0xff;
    bool marked = zero_bits(word | 7) >= 3;
    bool never_begun = blank(raw + TABLE_OFFSET, sizeof(raw) - TABLE_OFFSET);
    if (never_begun || (ours && (marked || (!sound && word == PAGE_BLANK_WORD)))) {
        p->state = PAGE_RECLAIM;
        return BOARD_OK;
    }
    TRY(scan_page(p, false));
    p->state = ours && p->used == 0 ? PAGE_RECLAIM : PAGE_UNREADABLE;
    #ifdef OUTPOST_LEG_STOCK
    p->state = PAGE_RECLAIM;    // ESP-IDF takes every page it cannot read for a free one
    #endif
    return BOARD_OK;
}

static page_t *listed(unsigned position) {
    return &store.pages[store.list[position]];
}

static page_t *current(void) {
    return listed(store.list_len - 1);
}

static uint8_t number_of(const page_t *p) {
    return (uint8_t)(p - store.pages);
}

static void unlist(const page_t *p) {
    unsigned kept = 0;
    for (unsigned i = 0; i < store.list_len; i++) {
        if (store.list[i] != number_of(p)) {
            store.list[kept++] = store.list[i];
        }
    }
    store.list_len = kept;
}

static int activate_page(void) {
    if (store.spare_len == 0) {
        return NVS_ERR_NO_FREE_PAGES;
    }
    page_t *p = &store.pages[store.spare[0]];
    if (p->state == PAGE_RECLAIM) {
        TRY(retire_page(p));
    }
    store.spare_len--;
    memmove(store.spare, store.spare + 1, store.spare_len);
    store.list[store.list_len++] = number_of(p);
    p->seq = store.next_seq++;
    return BOARD_OK;
}

static int copy_items(const page_t *from, page_t *to) {
    if (from->used == 0) {
        return BOARD_OK;
    }
    if (to->state == PAGE_BLANK) {
        TRY(begin_page(to));
    }
    for (int i = 0; i < ENTRY_COUNT; i++) {
        int span = from->span[i];
        if (span == 0) {
            continue;
        }
        int at = to->next_free;
        for (int k = i; k < i + span; k++) {
            uint8_t raw[ENTRY_SIZE];
            TRY(read_entry(from, k, raw));
            TRY(write_entry(to, raw));
        }
        to->span[at] = (uint8_t)span;
        to->used += span;
    }
    return BOARD_OK;
}

static int move_out(page_t *from) {
    TRY(activate_page());
    TRY(copy_items(from, current()));
    TRY(retire_page(from));
    unlist(from);
    store.spare[store.spare_len++] = number_of(from);
    return BOARD_OK;
}

// One page always stays free. When it is the last one, the page with the fewest values in it
// moves into it and becomes the free one.
static int request_page(void) {
    if (store.spare_len == 0) {
        return NVS_ERR_NO_FREE_PAGES;
    }
    if (store.spare_len >= 2) {
        return activate_page();
    }
    page_t *best = NULL;
    for (unsigned i = 0; i < store.list_len; i++) {
        if (best == NULL || listed(i)->used < best->used) {
            best = listed(i);
        }
    }
    if (best == NULL || best->used == ENTRY_COUNT) {
        return NVS_ERR_NOT_ENOUGH_SPACE;
    }
    TRY(write_page_state(best, PAGE_FREEING_WORD, PAGE_FREEING));
    return move_out(best);
}

static int close_page(page_t *p) {
    if (p->state == PAGE_BLANK) {
        TRY(begin_page(p));
    }
    return p->state == PAGE_FULL ? BOARD_OK : write_page_state(p, PAGE_FULL_WORD, PAGE_FULL);
}

static unsigned tailroom(const page_t *p) {
    if (p->state == PAGE_BLANK) {
        return CHUNK_MAX;
    }
    if (p->state != PAGE_ACTIVE || p->next_free >= ENTRY_COUNT - 1) {
        return 0;
    }
    return (unsigned)(ENTRY_COUNT - p->next_free - 1) * ENTRY_SIZE;
}

// ---- items

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

static int write_item(page_t *p, uint8_t ns, uint8_t type, const char *key, const void *data,
    size_t len, uint8_t chunk) {
    if (p->state == PAGE_BLANK) {
        TRY(begin_page(p));
    }
    if (p->state != PAGE_ACTIVE) {
        return NVS_ERR_PAGE_FULL;
    }
    if (strlen(key) > KEY_MAX) {
        return NVS_ERR_KEY_TOO_LONG;
    }
    int span = 1;
    if (has_data(type)) {
        span += (int)((len + ENTRY_SIZE - 1) / ENTRY_SIZE);
    }
    if (p->next_free + span > ENTRY_COUNT) {
        return NVS_ERR_PAGE_FULL;
    }
    entry_t e;
    make_entry(&e, ns, type, span, key, chunk);
    if (has_data(type)) {
        e.data[0] = (uint8_t)len;
        e.data[1] = (uint8_t)(len >> 8);
        put_le32(e.data + 4, ~crc_add(CRC_BEGIN, data, len));
    } else {
        memcpy(e.data, data, len);
    }
    put_le32(e.crc, entry_crc(&e));
    int at = p->next_free;
    TRY(write_entry(p, &e));
    if (has_data(type)) {
        size_t whole = len / ENTRY_SIZE * ENTRY_SIZE;
        if (whole > 0) {
            int count = (int)(whole / ENTRY_SIZE);
            TRY(flash_program(entry_address(p, p->next_free), data, whole));
            TRY(set_states(p, p->next_free, p->next_free + count, STATE_WRITTEN));
            p->next_free += count;
        }
        if (len > whole) {
            uint8_t tail[ENTRY_SIZE];
            memset(tail, 0xff, sizeof(tail));
            memcpy(tail, (const uint8_t *)data + whole, len - whole);
            TRY(write_entry(p, tail));
        }
    }
    p->span[at] = (uint8_t)span;
    p->used += span;
    return BOARD_OK;
}

// Walks the items, oldest first. `at->page` NULL: begin. False at the end.
static bool next_item(place_t *at, entry_t *e) {
    unsigned position;
    int index;
    if (at->page == NULL) {
        position = 0;
        index = 0;
    } else {
        position = at->order / ENTRY_COUNT;
        index = at->index + 1;
    }
    for (; position < store.list_len; position++, index = 0) {
        page_t *p = listed(position);
        for (; index < ENTRY_COUNT; index++) {
            if (p->span[index] != 0 && read_entry(p, index, e) == BOARD_OK) {
                at->page = p;
                at->index = index;
                at->order = position * ENTRY_COUNT + (unsigned)index;
                return true;
            }
        }
    }
    return false;
}

static bool same_key(const entry_t *e, uint8_t ns, const char *key) {
    return e->ns == ns && strncmp(e->key, key, KEY_MAX) == 0;
}

// The item of that type. For chunks, `chunk` is its number; of several the newest.
static bool find(uint8_t ns, uint8_t type, const char *key, uint8_t chunk, place_t *place, entry_t *e) {
    place_t at = { 0 };
    entry_t seen;
    bool found = false;
    while (next_item(&at, &seen)) {
        if (seen.type == type && seen.chunk == chunk && same_key(&seen, ns, key)
            && le32(seen.crc) == entry_crc(&seen)) {
            *place = at;
            *e = seen;
            found = true;
        }
    }
    return found;
}

// The value of a key whatever its type: everything but chunks.
static bool find_value(uint8_t ns, const char *key, place_t *place, entry_t *e) {
    place_t at = { 0 };
    entry_t seen;
    bool found = false;
    while (next_item(&at, &seen)) {
        if (seen.type != TYPE_CHUNK && same_key(&seen, ns, key)
            && le32(seen.crc) == entry_crc(&seen)) {
            *place = at;
            *e = seen;
            found = true;
        }
    }
    return found;
}

static uint32_t index_size(const entry_t *e) {
    return le32(e->data);
}

// Reads the blob that an index entry stands for. `out` NULL: only checks that it is whole.
static int read_blob(const entry_t *index, uint8_t *out) {
    char key[16];
    memcpy(key, index->key, sizeof(key));
    key[KEY_MAX] = '\0';
    uint32_t size = index_size(index);
    uint32_t done = 0;
    for (unsigned n = 0; n < index->data[4]; n++) {
        place_t at;
        entry_t e;
        if (!find(index->ns, TYPE_CHUNK, key, (uint8_t)(index->data[5] + n), &at, &e)
            || data_size(&e) > size - done || !data_intact(at.page, at.index, &e)) {
            return NVS_ERR_NOT_FOUND;
        }
        if (out != NULL) {
            TRY(flash_read(entry_address(at.page, at.index + 1), out + done, data_size(&e)));
        }
        done += data_size(&e);
    }
    return done == size ? BOARD_OK : NVS_ERR_NOT_FOUND;
}

// Erases the chunks of a key from number `first` up to before `end`.
static int erase_chunks(uint8_t ns, const char *key, unsigned first, unsigned end) {
    place_t at = { 0 };
    entry_t e;
    while (next_item(&at, &e)) {
        if (e.type == TYPE_CHUNK && e.chunk >= first && e.chunk < end && same_key(&e, ns, key)) {
            TRY(erase_item(at.page, at.index));
        }
    }
    return BOARD_OK;
}

static int erase_value(const place_t *place, const entry_t *e) {
    TRY(erase_item(place->page, place->index));
    if (e->type != TYPE_INDEX) {
        return BOARD_OK;
    }
    char key[16];
    memcpy(key, e->key, sizeof(key));
    key[KEY_MAX] = '\0';
    return e->data[5] < CHUNK_SECOND ? erase_chunks(e->ns, key, 0, CHUNK_SECOND)
        : erase_chunks(e->ns, key, CHUNK_SECOND, CHUNK_NONE);
}

// After a new value was written: everything the key had before goes.
static int erase_older(uint8_t ns, const char *key, unsigned order) {
    place_t at = { 0 };
    entry_t e;
    while (next_item(&at, &e)) {
        if (e.type != TYPE_CHUNK && at.order < order && same_key(&e, ns, key)) {
            TRY(erase_value(&at, &e));
        }
    }
    return BOARD_OK;
}

// ---- loading

static bool in_page(const entry_t *e, const page_t *from, int index, const page_t *p) {
    for (int i = 0; i < ENTRY_COUNT; i++) {
        entry_t other;
        if (p->span[i] == 0 || read_entry(p, i, &other) != BOARD_OK
            || memcmp(&other, e, sizeof(other)) != 0) {
            continue;
        }
        bool same = true;
        for (int k = 1; k < e->span && same; k++) {
            uint8_t a[ENTRY_SIZE], b[ENTRY_SIZE];
            same = read_entry(from, index + k, a) == BOARD_OK && read_entry(p, i + k, b) == BOARD_OK
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
        if (read_entry(a, i, &e) != BOARD_OK) {
            return false;
        }
        if (has_data(e.type) && !data_intact(a, i, &e)) {
            continue;       // nobody can read it
        }
        bool found = false;
        if (b != NULL) {
            found = in_page(&e, a, i, b);
        }
        for (unsigned k = 0; b == NULL && k < store.list_len && !found; k++) {
            found = in_page(&e, a, i, listed(k));
        }
        if (!found) {
            return false;
        }
    }
    return true;
}

static void insert_by_seq(uint8_t number) {
    unsigned at = store.list_len;
    while (at > 0 && listed(at - 1)->seq > store.pages[number].seq) {
        store.list[at] = store.list[at - 1];
        at--;
    }
    store.list[at] = number;
    store.list_len++;
}

// The power went while a page was moving into the last free one.
static int finish_move(page_t *from) {
    page_t *to = current();
    if (to != from && to->state == PAGE_ACTIVE) {
        if (!contained(to, from)) {
            // The last page has values of its own: no move was under way, only the page's
            // state is damaged. It goes on as a full page.
            from->state = PAGE_FULL;
            return BOARD_OK;
        }
        if (contained(from, to)) {
            TRY(retire_page(from));
            unlist(from);
            store.spare[store.spare_len++] = number_of(from);
            return BOARD_OK;
        }
        TRY(retire_page(to));
        unlist(to);
        store.spare[store.spare_len++] = number_of(to);
    }
    if (store.spare_len == 0) {
        from->state = PAGE_FULL;
        return BOARD_OK;
    }
    return move_out(from);
}

// The power went after a new value was written and before the old one was erased.
static int drop_superseded(void) {
    place_t at = { 0 };
    entry_t e;
    while (next_item(&at, &e)) {
        if (e.type == TYPE_CHUNK) {
            continue;
        }
        place_t newest;
        entry_t other;
        char key[16];
        memcpy(key, e.key, sizeof(key));
        key[KEY_MAX] = '\0';
        if (!find_value(e.ns, key, &newest, &other) || newest.order <= at.order) {
            continue;
        }
        if (other.type == TYPE_INDEX && read_blob(&other, NULL) != BOARD_OK
            && (e.type != TYPE_INDEX || read_blob(&e, NULL) == BOARD_OK)) {
            TRY(erase_value(&newest, &other));      // damaged: the older one is better
        } else {
            TRY(erase_value(&at, &e));
        }
    }
    return BOARD_OK;
}

// The power went before the index that makes chunks count was written, or after it was erased.
static int drop_orphans(void) {
    place_t at = { 0 };
    entry_t e;
    while (next_item(&at, &e)) {
        if (e.type != TYPE_CHUNK) {
            continue;
        }
        place_t owner;
        entry_t index;
        char key[16];
        memcpy(key, e.key, sizeof(key));
        key[KEY_MAX] = '\0';
        if (!find(e.ns, TYPE_INDEX, key, CHUNK_NONE, &owner, &index)
            || e.chunk < index.data[5] || e.chunk >= index.data[5] + index.data[4]) {
            TRY(erase_item(at.page, at.index));
        }
    }
    return BOARD_OK;
}

static unsigned count_state(page_state_t state) {
    unsigned count = 0;
    for (unsigned i = 0; i < store.count; i++) {
        count += store.pages[i].state == state ? 1 : 0;
    }
    return count;
}

static int load(void) {
    for (unsigned i = 0; i < store.count; i++) {
        page_t *p = &store.pages[i];
        TRY(load_page(p));
        if (p->state == PAGE_BLANK || p->state == PAGE_RECLAIM) {
            store.spare[store.spare_len++] = (uint8_t)i;
        } else if (p->state != PAGE_UNREADABLE) {
            insert_by_seq((uint8_t)i);
        }
    }
    if (store.list_len > 0) {
        store.next_seq = current()->seq + 1;
    }
    for (unsigned i = 0; i < store.count; i++) {
        page_t *p = &store.pages[i];
        if (p->state == PAGE_UNREADABLE && p->used > 0 && contained(p, NULL)) {
            // Marked as done with, but the mark was torn: now it is made whole.
            TRY(write_page_state(p, PAGE_DONE_WORD, PAGE_RECLAIM));
            store.spare[store.spare_len++] = (uint8_t)i;
        }
    }
    for (unsigned i = 0; i < store.list_len; i++) {
        if (listed(i)->state == PAGE_FREEING) {
            TRY(finish_move(listed(i)));
            i = (unsigned)-1;       // the list has changed; no page of it is taken twice
        }
    }
    TRY(drop_superseded());
    if (count_state(PAGE_UNREADABLE) == 0) {
        TRY(drop_orphans());
    }
    if (store.spare_len == 0) {
        // A full page without a single value in it serves as the free one.
        for (unsigned i = 0; i + 1 < store.list_len; i++) {
            if (listed(i)->used == 0) {
                page_t *p = listed(i);
                p->state = PAGE_RECLAIM;
                unlist(p);
                store.spare[store.spare_len++] = number_of(p);
                break;
            }
        }
    }
    if (store.list_len == 0) {
        return activate_page();
    }
    return store.spare_len == 0 ? NVS_ERR_NO_FREE_PAGES : BOARD_OK;
}

int nvs_init(uint32_t offset, uint32_t size) {
    nvs_deinit();
    store.count = size / FLASH_SECTOR_SIZE;
    if (offset % FLASH_SECTOR_SIZE != 0 || size % FLASH_SECTOR_SIZE != 0
        || store.count < 3 || store.count > NVS_MAX_PAGES) {
        store.count = 0;
        store.error = BOARD_ERR_INVALID_SIZE;
        return store.error;
    }
    for (unsigned i = 0; i < store.count; i++) {
        store.pages[i].base = offset + i * FLASH_SECTOR_SIZE;
    }
    store.error = load();
    store.ready = store.error == BOARD_OK
        || (store.error == NVS_ERR_NO_FREE_PAGES && store.list_len > 0);
    return store.error;
}

void nvs_deinit(void) {
    memset(&store, 0, sizeof(store));
    store.error = NVS_ERR_NOT_INITIALIZED;
}

int nvs_start(void) {
    const flash_partition_t *p = flash_partition_find(FLASH_TYPE_DATA, FLASH_SUBTYPE_NVS, "nvs");
    if (p == NULL) {
        nvs_deinit();
        store.error = NVS_ERR_PART_NOT_FOUND;
        return store.error;
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
    status->error = store.error;
    status->pages = store.count;
    status->pages_free = store.spare_len;
    status->pages_unreadable = count_state(PAGE_UNREADABLE);
    for (unsigned i = 0; i < store.list_len; i++) {
        status->entries_damaged += listed(i)->damaged;
        status->entries_used += (unsigned)listed(i)->used;
    }
    char *text = status->sentence;
    size_t room = sizeof(status->sentence);
    if (store.error == NVS_ERR_PART_NOT_FOUND) {
        snprintf(text, room, "there is no partition named nvs");
    } else if (store.error == NVS_ERR_NEW_VERSION_FOUND) {
        snprintf(text, room, "the NVS was written in a newer format; nothing in it is used");
    } else if (store.error == NVS_ERR_NO_FREE_PAGES && store.list_len == 0) {
        snprintf(text, room, "the NVS is corrupt: none of its %u pages can be read; it was left as it is",
            store.count);
    } else if (store.error == NVS_ERR_NO_FREE_PAGES) {
        snprintf(text, room, "the NVS has no free page (%u of %u cannot be read): it can be read, not written",
            status->pages_unreadable, store.count);
    } else if (store.error != BOARD_OK) {
        snprintf(text, room, "the NVS cannot be used: %s", board_err_name(store.error));
    } else if (status->pages_unreadable > 0) {
        snprintf(text, room, "%u of %u NVS pages cannot be read and were left as they are; keys may be missing",
            status->pages_unreadable, store.count);
    } else if (status->entries_damaged > 0) {
        snprintf(text, room, "%u NVS entries are damaged; keys may be missing", status->entries_damaged);
    }
}

// ---- what the board sees

static int usable(void) {
    if (store.ready) {
        return BOARD_OK;
    }
    return store.error != BOARD_OK ? store.error : NVS_ERR_NOT_INITIALIZED;
}

static int writable(void) {
    return store.error;
}

// A value of one entry: as ESP-IDF, nothing is written where it is the same already.
static int set_number(uint8_t ns, uint8_t type, const char *key, const void *data, size_t len) {
    TRY(usable());
    place_t old;
    entry_t e;
    bool had = find_value(ns, key, &old, &e);
    if (had && e.type == type && memcmp(e.data, data, len) == 0) {
        return BOARD_OK;
    }
    TRY(writable());
    #ifdef NVS_TEST_ERASE_OLD_FIRST
    if (had) {
        TRY(erase_value(&old, &e));
    }
    #endif
    int err = write_item(current(), ns, type, key, data, len, CHUNK_NONE);
    if (err == NVS_ERR_PAGE_FULL) {
        TRY(close_page(current()));
        TRY(request_page());
        err = write_item(current(), ns, type, key, data, len, CHUNK_NONE);
        if (err == NVS_ERR_PAGE_FULL) {
            return NVS_ERR_NOT_ENOUGH_SPACE;
        }
    }
    TRY(err);
    if (had) {
        place_t place = { 0 };
        find_value(ns, key, &place, &e);
        return erase_older(ns, key, place.order);
    }
    return BOARD_OK;
}

static int find_namespace(const char *name, uint8_t *ns) {
    place_t at = { 0 };
    entry_t e;
    while (next_item(&at, &e)) {
        if (e.ns == 0 && e.type == TYPE_U8 && same_key(&e, 0, name)) {
            *ns = e.data[0];
            return BOARD_OK;
        }
    }
    return NVS_ERR_NOT_FOUND;
}

int nvs_open(const char *name, bool create, uint8_t *ns) {
    TRY(usable());
    if (find_namespace(name, ns) == BOARD_OK) {
        return BOARD_OK;
    }
    if (!create) {
        return NVS_ERR_NOT_FOUND;
    }
    // A number that any item carries is taken too: its namespace entry may be damaged, and
    // its values must not turn up in another namespace.
    uint8_t taken[256] = { 0 };
    place_t at = { 0 };
    entry_t e;
    while (next_item(&at, &e)) {
        taken[e.ns] = 1;
        if (e.ns == 0 && e.type == TYPE_U8) {
            taken[e.data[0]] = 1;
        }
    }
    unsigned number = 1;
    while (number < 255 && taken[number]) {
        number++;
    }
    if (number == 255) {
        return NVS_ERR_NOT_ENOUGH_SPACE;
    }
    uint8_t value = (uint8_t)number;
    TRY(set_number(0, TYPE_U8, name, &value, 1));
    *ns = value;
    return BOARD_OK;
}

int nvs_set_i32(uint8_t ns, const char *key, int32_t value) {
    uint8_t bytes[4];
    put_le32(bytes, (uint32_t)value);
    return set_number(ns, TYPE_I32, key, bytes, sizeof(bytes));
}

int nvs_get_i32(uint8_t ns, const char *key, int32_t *value) {
    TRY(usable());
    place_t at;
    entry_t e;
    if (!find(ns, TYPE_I32, key, CHUNK_NONE, &at, &e)) {
        return NVS_ERR_NOT_FOUND;
    }
    *value = (int32_t)le32(e.data);
    return BOARD_OK;
}

// Writes the chunks and then the index. ESP-IDF, when it runs out of space on the way, takes
// back only the chunks numbered from 0; those numbered from 128 stay until the next start
// or until the key is written or erased. (It then also takes the *old* value's chunks for
// its own; this does not.)
static int write_blob(uint8_t ns, const char *key, const uint8_t *data, size_t len, uint8_t first) {
    unsigned max_pages = store.count - 1 < (CHUNK_NONE - 1) / 2 ? store.count - 1 : (CHUNK_NONE - 1) / 2;
    if (len > max_pages * CHUNK_MAX) {
        return NVS_ERR_VALUE_TOO_LONG;
    }
    size_t done = 0;
    unsigned chunks = 0;
    int err;
    for (;;) {
        page_t *p = current();
        unsigned room = tailroom(p);
        if (chunks == 0 && (room < len || room == 0) && room < CHUNK_MAX / 10) {
            TRY(close_page(p));
            TRY(request_page());
            if (tailroom(current()) == room) {
                return NVS_ERR_NOT_ENOUGH_SPACE;
            }
            continue;
        }
        if (room == 0) {
            err = NVS_ERR_NOT_ENOUGH_SPACE;
            break;
        }
        size_t part = len - done < room ? len - done : room;
        err = write_item(p, ns, TYPE_CHUNK, key, data + done, part, (uint8_t)(first + chunks));
        if (err != BOARD_OK) {
            break;
        }
        chunks++;
        done += part;
        if (done < len || room - part < ENTRY_SIZE) {
            err = close_page(p);
            if (err == BOARD_OK) {
                err = request_page();
            }
            if (err != BOARD_OK) {
                break;
            }
        }
        if (done == len) {
            uint8_t index[8];
            memset(index, 0xff, sizeof(index));
            put_le32(index, (uint32_t)len);
            index[4] = (uint8_t)chunks;
            index[5] = first;
            err = write_item(current(), ns, TYPE_INDEX, key, index, sizeof(index), CHUNK_NONE);
            break;
        }
    }
    if (err != BOARD_OK && first == 0) {
        erase_chunks(ns, key, 0, CHUNK_SECOND);
    }
    return err == NVS_ERR_PAGE_FULL ? NVS_ERR_NOT_ENOUGH_SPACE : err;
}

static bool same_blob(const entry_t *index, const uint8_t *data, size_t len) {
    char key[16];
    memcpy(key, index->key, sizeof(key));
    key[KEY_MAX] = '\0';
    if (index_size(index) != len || read_blob(index, NULL) != BOARD_OK) {
        return false;
    }
    size_t done = 0;
    for (unsigned n = 0; n < index->data[4]; n++) {
        place_t at;
        entry_t e;
        if (!find(index->ns, TYPE_CHUNK, key, (uint8_t)(index->data[5] + n), &at, &e)) {
            return false;
        }
        for (int i = at.index + 1; i < at.index + e.span; i++) {
            uint8_t raw[ENTRY_SIZE];
            size_t part = len - done < ENTRY_SIZE ? len - done : ENTRY_SIZE;
            if (read_entry(at.page, i, raw) != BOARD_OK || memcmp(raw, data + done, part) != 0) {
                return false;
            }
            done += part;
        }
    }
    return true;
}

int nvs_set_blob(uint8_t ns, const char *key, const void *data, size_t len) {
    TRY(usable());
    place_t old;
    entry_t e;
    bool had = find_value(ns, key, &old, &e);
    uint8_t first = 0;
    if (had && e.type == TYPE_INDEX) {
        if (same_blob(&e, data, len)) {
            return BOARD_OK;
        }
        first = e.data[5] < CHUNK_SECOND ? CHUNK_SECOND : 0;
    }
    TRY(writable());
    #ifdef NVS_TEST_ERASE_OLD_FIRST
    if (had) {
        TRY(erase_value(&old, &e));
    }
    #endif
    // Chunks left over from an attempt that did not come to its index.
    TRY(first == 0 ? erase_chunks(ns, key, 0, CHUNK_SECOND)
        : erase_chunks(ns, key, CHUNK_SECOND, CHUNK_NONE));
    TRY(write_blob(ns, key, data, len, first));
    if (had) {
        place_t place = { 0 };
        find_value(ns, key, &place, &e);
        return erase_older(ns, key, place.order);
    }
    return BOARD_OK;
}

int nvs_get_blob(uint8_t ns, const char *key, void *data, size_t *len) {
    TRY(usable());
    place_t at;
    entry_t e;
    bool indexed = find(ns, TYPE_INDEX, key, CHUNK_NONE, &at, &e);
    if (!indexed && !find(ns, TYPE_BLOB_V1, key, CHUNK_NONE, &at, &e)) {
        return NVS_ERR_NOT_FOUND;
    }
    size_t size = indexed ? index_size(&e) : data_size(&e);
    size_t room = *len;
    *len = size;
    if (data == NULL) {
        return BOARD_OK;
    }
    if (room < size) {
        return NVS_ERR_INVALID_LENGTH;
    }
    if (indexed) {
        TRY(read_blob(&e, NULL));       // whole before the first byte is handed out
        return read_blob(&e, data);
    }
    if (!data_intact(at.page, at.index, &e)) {
        return NVS_ERR_NOT_FOUND;
    }
    return flash_read(entry_address(at.page, at.index + 1), data, size);
}

int nvs_erase_key(uint8_t ns, const char *key) {
    TRY(usable());
    place_t at;
    entry_t e;
    if (!find_value(ns, key, &at, &e)) {
        return NVS_ERR_NOT_FOUND;
    }
    TRY(writable());
    TRY(erase_older(ns, key, at.order));
    TRY(erase_value(&at, &e));
    return e.type == TYPE_INDEX ? erase_chunks(ns, key, 0, CHUNK_NONE) : BOARD_OK;
}

int nvs_commit(uint8_t ns) {
    (void)ns;
    return usable();
}

// ---- the radio's settings

int nvs_wifi_init(void) {
    static const struct {
        const char *key;
        uint16_t len;           // 0: one byte
        uint8_t value;
    } settings[] = {
        { "opmode", 0, 2 }, { "country", 12, 0 }, { "sta.ssid", 36, 0xff }, { "sta.authmode", 0, 1 },
        { "sta.pswd", 65, 0xff }, { "sta.pmk", 32, 0xff }, { "sta.chan", 0, 0 },
        { "auto.conn", 0, 0 }, { "bssid.set", 0, 0 }, { "sta.bssid", 6, 0xff },
        { "sta.phym", 0, 7 }, { "sta.phybw", 0, 2 }, { "sta.apsw", 2, 0xff },
        { "sta.scan_method", 0, 0 }, { "sta.sort_method", 0, 0 }, { "sta.minrssi", 0, 0x81 },
        { "ap.ssid", 36, 0xff }, { "ap.authmode", 0, 0 }, { "ap.passwd", 65, 0xff },
        { "ap.chan", 0, 1 }, { "ap.hidden", 0, 0 }, { "ap.max.conn", 0, 4 },
        { "bcn.interval", 2, 100 }, { "ap.phym", 0, 7 }, { "ap.phybw", 0, 2 },
    };
    uint8_t ns;
    TRY(nvs_open("nvs.net80211", true, &ns));
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
        uint8_t data[80];
        place_t at;
        entry_t e;
        memset(data, settings[i].value, sizeof(data));
        if (find_value(ns, settings[i].key, &at, &e)) {
            continue;
        }
        TRY(settings[i].len == 0 ? set_number(ns, TYPE_U8, settings[i].key, data, 1)
            : nvs_set_blob(ns, settings[i].key, data, settings[i].len));
    }
    return BOARD_OK;
}
