// SPDX-License-Identifier: MIT
// The board's flash chip: one image file of 4, 8 or 16 MiB, held to NOR rules.
//
// Owns the image (mapped, so what is programmed is in the file at once), the
// counters, the power cut at operation N, and the partition table at 0x8000.
// Never sets a bit without an erase, never allocates after flash_open, knows
// nothing of MicroPython: host tests load this file as a shared library.
#ifndef OUTPOST_FLASH_H
#define OUTPOST_FLASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FLASH_SECTOR_SIZE 4096u
#define FLASH_PAGE_SIZE 256u
#define FLASH_TABLE_OFFSET 0x8000u
#define FLASH_TABLE_SIZE 0xC00u
#define FLASH_MAX_PARTITIONS 95

// ESP-IDF's codes, as far as flash, partitions and NVS need them.
#define BOARD_OK 0
#define BOARD_FAIL (-1)
#define BOARD_ERR_NO_MEM 0x101
#define BOARD_ERR_INVALID_ARG 0x102
#define BOARD_ERR_INVALID_STATE 0x103
#define BOARD_ERR_INVALID_SIZE 0x104
#define BOARD_ERR_NOT_FOUND 0x105
#define BOARD_ERR_NOT_SUPPORTED 0x106
#define BOARD_ERR_TIMEOUT 0x107
#define BOARD_ERR_NOT_ALLOWED 0x10d
#define BOARD_ERR_OTA_PARTITION_CONFLICT 0x1501
#define BOARD_ERR_OTA_SELECT_INFO_INVALID 0x1502
#define BOARD_ERR_OTA_VALIDATE_FAILED 0x1503
#define BOARD_ERR_FLASH_OP_FAIL 0x6001

// The name ESP-IDF prints for a code ("ESP_ERR_NVS_NOT_FOUND"), "UNKNOWN ERROR" for others.
const char *board_err_name(int code);

// Opens the image. 0, or -1 and flash_error() says why in one sentence.
// The file is locked while it is open: two boards never share one flash.
int flash_open(const char *path);
void flash_close(void);
bool flash_is_open(void);
uint32_t flash_size(void);
// One sentence about the last failure of flash_open or flash_partitions. Never NULL.
const char *flash_error(void);

// Each answers BOARD_OK, BOARD_ERR_INVALID_SIZE (outside the chip), BOARD_ERR_INVALID_ARG
// (an erase that is not on a sector) or BOARD_ERR_FLASH_OP_FAIL (the power is gone).
// A program is done page by page (256 bytes, never across a page's end): each page is one
// operation, and so is each sector erase.
int flash_read(uint32_t offset, void *buf, size_t len);
int flash_program(uint32_t offset, const void *buf, size_t len);
int flash_erase_sector(uint32_t offset);

typedef struct {
    uint64_t erases;
    uint64_t programs;          // pages programmed, whole or in part
    uint64_t bytes_programmed;
} flash_counts_t;
void flash_counts(flash_counts_t *counts);
void flash_counts_reset(void);
// Erases so far of the sector that holds `offset` (since flash_open or the last reset).
uint32_t flash_sector_erases(uint32_t offset);
// erases + programs so far: the number that flash_cut_after counts from.
uint64_t flash_operations(void);

// The power goes at the n-th operation from now (1-based; 0 takes a planned cut back).
// FLASH_CUT_CLEAN: the n-th operation does not begin. FLASH_CUT_TORN: a program writes the
// first half of its bytes and some bits of the byte at the tear; an erase leaves a sector
// whose beginning is erased, whose middle is a mixture and whose end is what it was.
// FLASH_CUT_ODD: the other kind of damage: the bytes of a program land out of order, an
// erase leaves weak bits all over. The same seed gives the same damage.
enum { FLASH_CUT_CLEAN = 0, FLASH_CUT_TORN = 1, FLASH_CUT_ODD = 2 };
void flash_cut_after(uint64_t n, int mode, uint32_t seed);
// Called at the cut, after the damage is done; the board's ends the process with 73 and
// does not return. Without one the chip is dead: every operation that changes it fails
// until flash_power_on().
void flash_on_cut(void (*hook)(void));
bool flash_power_lost(void);
void flash_power_on(void);

// ---- partitions

typedef struct {
    uint8_t type;
    uint8_t subtype;
    uint32_t offset;
    uint32_t size;
    char label[17];
    bool encrypted;
    bool readonly;
} flash_partition_t;

#define FLASH_TYPE_APP 0x00
#define FLASH_TYPE_DATA 0x01
#define FLASH_TYPE_ANY 0xff
#define FLASH_SUBTYPE_ANY 0xff
#define FLASH_SUBTYPE_FACTORY 0x00
#define FLASH_SUBTYPE_OTA_0 0x10
#define FLASH_SUBTYPE_OTADATA 0x00
#define FLASH_SUBTYPE_NVS 0x02
#define FLASH_SUBTYPE_NVS_KEYS 0x04

// Reads the table. How many partitions, or -1 and flash_error() says in one sentence what
// is wrong with it (the board then ends with exit code 75). Read afresh at each call.
int flash_partitions(const flash_partition_t **table);
// As esp_partition_find_first; label NULL: any. NULL when there is none.
const flash_partition_t *flash_partition_find(int type, int subtype, const char *label);
// As esp_partition_read, _write, _erase_range: BOARD_OK or ESP-IDF's code.
int flash_partition_read(const flash_partition_t *p, uint32_t offset, void *buf, size_t len);
int flash_partition_write(const flash_partition_t *p, uint32_t offset, const void *buf, size_t len);
int flash_partition_erase(const flash_partition_t *p, uint32_t offset, size_t len);
// Erases of all its sectors so far (for --report).
uint64_t flash_partition_erases(const flash_partition_t *p);

// ---- which application starts (otadata), as ESP-IDF's bootloader and esp_ota_ops

const flash_partition_t *flash_boot_partition(void);
const flash_partition_t *flash_running_partition(void);
const flash_partition_t *flash_next_update_partition(const flash_partition_t *from);
int flash_set_boot_partition(const flash_partition_t *p);
int flash_mark_app_valid(void);
// What the bootloader notes at each start: a new application's one try, and that it was not taken.
void flash_bootloader(void);

#endif
