// SPDX-License-Identifier: MIT
// What the parts of the NVS share: the layout in flash, the state of each page, and their calls.
//
// A page: 32 bytes of header, 32 bytes of entry states (2 bits each), 126 entries of 32 bytes.
// A value takes one entry (numbers), or one and its data (a chunk of a blob, a string). A blob
// is its chunks and then, last, the index entry that makes them count. An update writes the
// new value whole and then marks the old one erased; its chunks are numbered from 0 or from
// 128 in turn, so that old and new can stand side by side.
#ifndef OUTPOST_NVS_STORE_H
#define OUTPOST_NVS_STORE_H

#include "bytes.h"
#include "flash.h"
#include "nvs.h"

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

typedef struct {
    bool ready;
    int error;
    unsigned count;
    uint32_t next_seq;
    page_t pages[NVS_MAX_PAGES];
    uint8_t list[NVS_MAX_PAGES];    // pages in use, oldest first; the last one is written to
    unsigned list_len;
    uint8_t spare[NVS_MAX_PAGES];   // free pages, the next to be taken first
    unsigned spare_len;
} nvs_store_t;
extern nvs_store_t nvs_store;

// A place: page number and entry. `order` grows with the age of what is written there.
typedef struct {
    page_t *page;
    int index;
    unsigned order;
} place_t;

#define TRY(call) do { int err_ = (call); if (err_ != BOARD_OK) { return err_; } } while (0)

// ---- nvs_entry.c: bytes, CRCs, the entries of a page

#define CRC_BEGIN 0u
uint32_t nvs_crc_add(uint32_t crc, const void *data, size_t len);
uint32_t nvs_entry_crc(const entry_t *e);
bool nvs_has_data(uint8_t type);
unsigned nvs_data_size(const entry_t *e);
uint32_t nvs_entry_address(const page_t *p, int index);
int nvs_read_entry(const page_t *p, int index, void *entry);
int nvs_set_states(page_t *p, int begin, int end, uint8_t state);
// `len` bytes that begin with an entry, as they were written.
int nvs_read_data(const page_t *p, int index, uint8_t *out, size_t len);
// Whole entries, to where the page's next free one is.
int nvs_program_entries(const page_t *p, const uint8_t *entries, int count);
int nvs_write_entry(page_t *p, const void *entry);
int nvs_erase_item(page_t *p, int index);
bool nvs_data_intact(const page_t *p, int index, const entry_t *e);
int nvs_scan_page(page_t *p, bool mend);

// ---- nvs_page.c

int nvs_write_page_state(page_t *p, uint32_t word, page_state_t state);
int nvs_begin_page(page_t *p);
int nvs_retire_page(page_t *p);
int nvs_load_page(page_t *p);
page_t *nvs_listed(unsigned position);
page_t *nvs_current(void);
uint8_t nvs_number_of(const page_t *p);
void nvs_unlist(const page_t *p);
int nvs_activate_page(void);
int nvs_move_out(page_t *from);
int nvs_request_page(void);
int nvs_close_page(page_t *p);
unsigned nvs_tailroom(const page_t *p);

// ---- nvs_item.c

int nvs_write_item(page_t *p, uint8_t ns, uint8_t type, const char *key, const void *data,
    size_t len, uint8_t chunk);
bool nvs_next_item(place_t *at, entry_t *e);
bool nvs_same_key(const entry_t *e, uint8_t ns, const char *key);
bool nvs_find(uint8_t ns, uint8_t type, const char *key, uint8_t chunk, place_t *place, entry_t *e);
bool nvs_find_value(uint8_t ns, const char *key, place_t *place, entry_t *e);
uint32_t nvs_index_size(const entry_t *e);
int nvs_read_blob(const entry_t *index, uint8_t *out);
int nvs_erase_chunks(uint8_t ns, const char *key, unsigned first, unsigned end);
int nvs_erase_value(const place_t *place, const entry_t *e);
int nvs_erase_older(uint8_t ns, const char *key, unsigned order);

// ---- nvs.c

int nvs_set_number(uint8_t ns, uint8_t type, const char *key, const void *data, size_t len);

#endif
