// SPDX-License-Identifier: MIT
// Espressif's NVS format on the board's flash: what the board sees; nvs.h says what it promises.
//
// Owns how a value is replaced. Behaves as ESP-IDF 5.4 does where that can be seen from outside:
// which page is taken next, how a blob is cut into chunks, when it is full. It differs in what it
// does with damage (nvs_load.c). Never allocates memory.
#include "flash.h"
#include "nvs_store.h"

#include <string.h>

static int usable(void) {
    if (nvs_store.ready) {
        return BOARD_OK;
    }
    return nvs_store.error != BOARD_OK ? nvs_store.error : NVS_ERR_NOT_INITIALIZED;
}

static int writable(void) {
    return nvs_store.error == NVS_ERR_NO_FREE_PAGES ? NVS_ERR_READ_ONLY : nvs_store.error;
}

// A value of one entry: as ESP-IDF, nothing is written where it is the same already.
int nvs_set_number(uint8_t ns, uint8_t type, const char *key, const void *data, size_t len) {
    TRY(usable());
    place_t old;
    entry_t e;
    bool had = nvs_find_value(ns, key, &old, &e);
    if (had && e.type == type && memcmp(e.data, data, len) == 0) {
        return BOARD_OK;
    }
    TRY(writable());
    #ifdef NVS_TEST_ERASE_OLD_FIRST
    if (had) {
        TRY(nvs_erase_value(&old, &e));
    }
    #endif
    int err = nvs_write_item(nvs_current(), ns, type, key, data, len, CHUNK_NONE);
    if (err == NVS_ERR_PAGE_FULL) {
        TRY(nvs_close_page(nvs_current()));
        TRY(nvs_request_page());
        err = nvs_write_item(nvs_current(), ns, type, key, data, len, CHUNK_NONE);
        if (err == NVS_ERR_PAGE_FULL) {
            return NVS_ERR_NOT_ENOUGH_SPACE;
        }
    }
    TRY(err);
    if (had) {
        place_t place = { 0 };
        nvs_find_value(ns, key, &place, &e);
        return nvs_erase_older(ns, key, place.order);
    }
    return BOARD_OK;
}

static int find_namespace(const char *name, uint8_t *ns) {
    place_t at = { 0 };
    entry_t e;
    while (nvs_next_item(&at, &e)) {
        if (e.ns == 0 && e.type == TYPE_U8 && nvs_same_key(&e, 0, name)) {
            *ns = e.data[0];
            return BOARD_OK;
        }
    }
    return NVS_ERR_NOT_FOUND;
}

esp_err_t nvs_open(const char *name, nvs_open_mode_t mode, nvs_handle_t *handle) {
    TRY(usable());
    // Opened for reading alone, as a partition that is marked read-only (espboard.c does that).
    if (mode == NVS_READWRITE && nvs_store.error == NVS_ERR_NO_FREE_PAGES) {
        return BOARD_ERR_NOT_ALLOWED;
    }
    uint8_t ns;
    if (find_namespace(name, &ns) == BOARD_OK) {
        *handle = ns;
        return BOARD_OK;
    }
    if (mode == NVS_READONLY) {
        return NVS_ERR_NOT_FOUND;
    }
    // A number that any item carries is taken too: its namespace entry may be damaged, and
    // its values must not turn up in another namespace.
    uint8_t taken[256] = { 0 };
    place_t at = { 0 };
    entry_t e;
    while (nvs_next_item(&at, &e)) {
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
    TRY(nvs_set_number(0, TYPE_U8, name, &value, 1));
    *handle = value;
    return BOARD_OK;
}

void nvs_close(nvs_handle_t handle) {
    (void)handle;
}

esp_err_t nvs_set_i32(nvs_handle_t handle, const char *key, int32_t value) {
    uint8_t bytes[4];
    put_le32(bytes, (uint32_t)value);
    return nvs_set_number((uint8_t)handle, TYPE_I32, key, bytes, sizeof(bytes));
}

esp_err_t nvs_get_i32(nvs_handle_t handle, const char *key, int32_t *value) {
    TRY(usable());
    place_t at;
    entry_t e;
    if (!nvs_find((uint8_t)handle, TYPE_I32, key, CHUNK_NONE, &at, &e)) {
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
    unsigned max_pages = nvs_store.count - 1 < (CHUNK_NONE - 1) / 2 ? nvs_store.count - 1 : (CHUNK_NONE - 1) / 2;
    if (len > max_pages * CHUNK_MAX) {
        return NVS_ERR_VALUE_TOO_LONG;
    }
    size_t done = 0;
    unsigned chunks = 0;
    int err;
    for (;;) {
        page_t *p = nvs_current();
        unsigned room = nvs_tailroom(p);
        if (chunks == 0 && (room < len || room == 0) && room < CHUNK_MAX / 10) {
            TRY(nvs_close_page(p));
            TRY(nvs_request_page());
            if (nvs_tailroom(nvs_current()) == room) {
                return NVS_ERR_NOT_ENOUGH_SPACE;
            }
            continue;
        }
        if (room == 0) {
            err = NVS_ERR_NOT_ENOUGH_SPACE;
            break;
        }
        size_t part = len - done < room ? len - done : room;
        err = nvs_write_item(p, ns, TYPE_CHUNK, key, data + done, part, (uint8_t)(first + chunks));
        if (err != BOARD_OK) {
            break;
        }
        chunks++;
        done += part;
        if (done < len || room - part < ENTRY_SIZE) {
            err = nvs_close_page(p);
            if (err == BOARD_OK) {
                err = nvs_request_page();
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
            err = nvs_write_item(nvs_current(), ns, TYPE_INDEX, key, index, sizeof(index), CHUNK_NONE);
            break;
        }
    }
    if (err != BOARD_OK && first == 0) {
        nvs_erase_chunks(ns, key, 0, CHUNK_SECOND);
    }
    return err == NVS_ERR_PAGE_FULL ? NVS_ERR_NOT_ENOUGH_SPACE : err;
}

static bool same_blob(const entry_t *index, const uint8_t *data, size_t len) {
    char key[16];
    memcpy(key, index->key, sizeof(key));
    key[KEY_MAX] = '\0';
    if (nvs_index_size(index) != len || nvs_read_blob(index, NULL) != BOARD_OK) {
        return false;
    }
    size_t done = 0;
    for (unsigned n = 0; n < index->data[4]; n++) {
        place_t at;
        entry_t e;
        if (!nvs_find(index->ns, TYPE_CHUNK, key, (uint8_t)(index->data[5] + n), &at, &e)) {
            return false;
        }
        for (int i = at.index + 1; i < at.index + e.span; i++) {
            uint8_t raw[ENTRY_SIZE];
            size_t part = len - done < ENTRY_SIZE ? len - done : ENTRY_SIZE;
            if (nvs_read_entry(at.page, i, raw) != BOARD_OK || memcmp(raw, data + done, part) != 0) {
                return false;
            }
            done += part;
        }
    }
    return true;
}

esp_err_t nvs_set_blob(nvs_handle_t handle, const char *key, const void *data, size_t len) {
    uint8_t ns = (uint8_t)handle;
    TRY(usable());
    place_t old;
    entry_t e;
    bool had = nvs_find_value(ns, key, &old, &e);
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
        TRY(nvs_erase_value(&old, &e));
    }
    #endif
    // Chunks left over from an attempt that did not come to its index.
    TRY(first == 0 ? nvs_erase_chunks(ns, key, 0, CHUNK_SECOND)
        : nvs_erase_chunks(ns, key, CHUNK_SECOND, CHUNK_NONE));
    TRY(write_blob(ns, key, data, len, first));
    if (had) {
        place_t place = { 0 };
        nvs_find_value(ns, key, &place, &e);
        return nvs_erase_older(ns, key, place.order);
    }
    return BOARD_OK;
}

esp_err_t nvs_get_blob(nvs_handle_t handle, const char *key, void *data, size_t *len) {
    uint8_t ns = (uint8_t)handle;
    TRY(usable());
    place_t at;
    entry_t e;
    bool indexed = nvs_find(ns, TYPE_INDEX, key, CHUNK_NONE, &at, &e);
    if (!indexed && !nvs_find(ns, TYPE_BLOB_V1, key, CHUNK_NONE, &at, &e)) {
        return NVS_ERR_NOT_FOUND;
    }
    size_t size = indexed ? nvs_index_size(&e) : nvs_data_size(&e);
    size_t room = *len;
    *len = size;
    if (data == NULL) {
        return BOARD_OK;
    }
    if (room < size) {
        return NVS_ERR_INVALID_LENGTH;
    }
    if (indexed) {
        TRY(nvs_read_blob(&e, NULL));       // whole before the first byte is handed out
        return nvs_read_blob(&e, data);
    }
    if (!nvs_data_intact(at.page, at.index, &e)) {
        return NVS_ERR_NOT_FOUND;
    }
    return nvs_read_data(at.page, at.index + 1, data, size);
}

esp_err_t nvs_erase_key(nvs_handle_t handle, const char *key) {
    uint8_t ns = (uint8_t)handle;
    TRY(usable());
    place_t at;
    entry_t e;
    if (!nvs_find_value(ns, key, &at, &e)) {
        return NVS_ERR_NOT_FOUND;
    }
    TRY(writable());
    TRY(nvs_erase_older(ns, key, at.order));
    TRY(nvs_erase_value(&at, &e));
    return e.type == TYPE_INDEX ? nvs_erase_chunks(ns, key, 0, CHUNK_NONE) : BOARD_OK;
}

esp_err_t nvs_commit(nvs_handle_t handle) {
    (void)handle;
    return usable();
}
