// SPDX-License-Identifier: MIT
// Key-value storage in Espressif's NVS format (version 2), on the board's flash.
//
// Owns the `nvs` partition. One partition is open at a time; its state is static memory.
// Never erases a page it cannot read (stock firmware erases the whole partition when no
// page is free: this one goes on with what is readable and says so in nvs_status), never
// loses the old value of a key before the new one is whole. Built with OUTPOST_LEG_STOCK it
// is the stock board's: unreadable pages count as free, and start-up erases as said.
#ifndef OUTPOST_NVS_H
#define OUTPOST_NVS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NVS_ERR_NOT_INITIALIZED 0x1101
#define NVS_ERR_NOT_FOUND 0x1102
#define NVS_ERR_TYPE_MISMATCH 0x1103
#define NVS_ERR_READ_ONLY 0x1104
#define NVS_ERR_NOT_ENOUGH_SPACE 0x1105
#define NVS_ERR_INVALID_NAME 0x1106
#define NVS_ERR_INVALID_HANDLE 0x1107
#define NVS_ERR_REMOVE_FAILED 0x1108
#define NVS_ERR_KEY_TOO_LONG 0x1109
#define NVS_ERR_PAGE_FULL 0x110a
#define NVS_ERR_INVALID_STATE 0x110b
#define NVS_ERR_INVALID_LENGTH 0x110c
#define NVS_ERR_NO_FREE_PAGES 0x110d
#define NVS_ERR_VALUE_TOO_LONG 0x110e
#define NVS_ERR_PART_NOT_FOUND 0x110f
#define NVS_ERR_NEW_VERSION_FOUND 0x1110
#define NVS_ERR_KEYS_NOT_INITIALIZED 0x1116
#define NVS_ERR_CORRUPT_KEY_PART 0x1117

#define NVS_MAX_PAGES 64

// Loads the partition at offset..offset+size (whole sectors, at least 3) and finishes what
// a power cut left half done. BOARD_OK, or the code of what is wrong:
// NVS_ERR_NO_FREE_PAGES means that what is readable can be read but nothing can be written.
int nvs_init(uint32_t offset, uint32_t size);
void nvs_deinit(void);

// The 64 bytes that entries are encrypted with from the next nvs_init on; NULL: they are plain.
void nvs_set_key(const uint8_t *key);

// For the board's start: takes the partition `nvs` from the table and calls nvs_init. In our firmware
// it is encrypted where the table has a partition `nvs_keys` (which flash encryption protects on a
// board, and nothing here). Stock firmware is not built for that.
// BOARD_OK even where pages are unreadable: nvs_status() says what was found.
int nvs_start(void);

typedef struct {
    int error;                // what nvs_init answered; 0: all is well
    unsigned pages;
    unsigned pages_free;      // erased and ready
    unsigned pages_unreadable; // neither empty nor a page we can read; left alone
    unsigned entries_used;
    unsigned entries_damaged; // entries whose CRC was wrong when the partition was loaded
    char sentence[128];       // "" when all is well, else one sentence for the console
} nvs_status_t;
void nvs_status(nvs_status_t *status);

// The calls from here on are named and typed as ESP-IDF's, so that C code that uses them is the
// same on the board. A handle is the namespace's number; it stays good until nvs_deinit, and
// closing it does nothing.
typedef int esp_err_t;
typedef uint32_t nvs_handle_t;
typedef enum { NVS_READONLY, NVS_READWRITE } nvs_open_mode_t;
#define ESP_OK 0
#define ESP_ERR_NOT_ALLOWED 0x10d
#define ESP_ERR_NVS_NOT_FOUND NVS_ERR_NOT_FOUND
#define ESP_ERR_NVS_INVALID_NAME NVS_ERR_INVALID_NAME
#define ESP_ERR_NVS_INVALID_LENGTH NVS_ERR_INVALID_LENGTH
#define esp_err_to_name board_err_name
const char *board_err_name(int code);

// A namespace that is not there is made with NVS_READWRITE, else NVS_ERR_NOT_FOUND. Where nothing can
// be written, NVS_READWRITE is ESP_ERR_NOT_ALLOWED.
esp_err_t nvs_open(const char *name, nvs_open_mode_t mode, nvs_handle_t *handle);
void nvs_close(nvs_handle_t handle);
esp_err_t nvs_set_i32(nvs_handle_t handle, const char *key, int32_t value);
esp_err_t nvs_get_i32(nvs_handle_t handle, const char *key, int32_t *value);
esp_err_t nvs_set_blob(nvs_handle_t handle, const char *key, const void *data, size_t len);
// *len: room in, length of the value out. data NULL: asks the length alone.
esp_err_t nvs_get_blob(nvs_handle_t handle, const char *key, void *data, size_t *len);
esp_err_t nvs_erase_key(nvs_handle_t handle, const char *key);
esp_err_t nvs_commit(nvs_handle_t handle);

// What the radio's driver does when it is set up: its calibration and settings go into the
// namespace nvs.net80211. BOARD_OK, or the code that makes network.WLAN() fail (0x1105: full).
int nvs_wifi_init(void);

#endif
