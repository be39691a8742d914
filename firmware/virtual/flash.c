// SPDX-License-Identifier: MIT
// The board's flash chip over one image file; see flash.h for what it promises.
//
// Owns the mapping of the image, the counters and the planned power cut. Never sets a bit
// without an erase and never changes the image outside flash_program and
// flash_erase_sector, so that every change is counted and can be cut.
#include "flash.h"
#include "flash_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static struct {
    int fd;
    uint8_t *image;
    uint32_t size;
    uint32_t *wear;             // erases of each sector
    flash_counts_t counts;
    uint64_t cut_in;            // operations left until the cut; 0: none planned
    int cut_mode;
    uint32_t cut_seed;
    bool dead;
    void (*on_cut)(void);
    char error[200];
} chip = { .fd = -1 };

int flash_fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(chip.error, sizeof(chip.error), format, args);
    va_end(args);
    return -1;
}

const char *flash_error(void) {
    return chip.error;
}

// ---- the image

int flash_open(const char *path) {
    flash_close();
    chip.error[0] = '\0';
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return flash_fail("cannot open the flash image %s: %s", path, strerror(errno));
    }
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return flash_fail("the flash image %s is not a regular file", path);
    }
    const uint32_t mib = 1024 * 1024;
    if (st.st_size != 4 * mib && st.st_size != 8 * mib && st.st_size != 16 * mib) {
        close(fd);
        return flash_fail("the flash image %s has %lld bytes: a chip has 4, 8 or 16 MiB; "
            "make it anew with `outpost image`", path, (long long)st.st_size);
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        close(fd);
        return flash_fail("the flash image %s is in use by another board", path);
    }
    void *image = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (image == MAP_FAILED) {
        close(fd);
        return flash_fail("cannot map the flash image %s: %s", path, strerror(errno));
    }
    uint32_t *wear = calloc((size_t)st.st_size / FLASH_SECTOR_SIZE, sizeof(uint32_t));
    if (wear == NULL) {
        munmap(image, (size_t)st.st_size);
        close(fd);
        return flash_fail("no memory for the counters of the flash image");
    }
    chip.fd = fd;
    chip.image = image;
    chip.size = (uint32_t)st.st_size;
    chip.wear = wear;
    flash_counts_reset();
    chip.cut_in = 0;
    chip.dead = false;
    flash_table_forget();
    return 0;
}

void flash_close(void) {
    if (chip.image != NULL) {
        munmap(chip.image, chip.size);
        close(chip.fd);
        free(chip.wear);
    }
    chip.fd = -1;
    chip.image = NULL;
    chip.wear = NULL;
    chip.size = 0;
    flash_table_forget();
}

bool flash_is_open(void) {
    return chip.image != NULL;
}

uint32_t flash_size(void) {
    return chip.size;
}

const uint8_t *flash_image(void) {
    return chip.image;
}

bool flash_outside(uint32_t offset, size_t len) {
    return offset > chip.size || len > chip.size - offset;
}

// ---- the power cut

static uint32_t noise(uint32_t *state) {
    uint32_t x = *state;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    *state = x;
    return x;
}

static uint32_t noise_start(uint32_t offset) {
    uint32_t state = chip.cut_seed * 2654435761u + offset * 40503u + 0x9e3779b9u;
    return state != 0 ? state : 1;
}

// What a program leaves when the power goes in the middle of it.
static void tear_program(uint32_t offset, const uint8_t *src, size_t len) {
    uint8_t *cell = chip.image + offset;
    uint32_t state = noise_start(offset);
    if (chip.cut_mode == FLASH_CUT_TORN) {
        size_t half = len / 2;
        for (size_t i = 0; i < half; i++) {
            cell[i] &= src[i];
        }
        cell[half] &= src[half] | (uint8_t)noise(&state);
    } else {
        // Any subset of the bits that were to be cleared, in any order.
        for (size_t i = 0; i < len; i++) {
            uint32_t r = noise(&state);
            uint8_t keep = (r & 0x300) == 0 ? 0x00 : (r & 0x300) == 0x300 ? 0xff : (uint8_t)r;
            cell[i] &= src[i] | keep;
        }
    }
}

// What an erase leaves: bits only rise.
static void tear_erase(uint32_t offset) {
    uint8_t *cell = chip.image + offset;
    uint32_t state = noise_start(offset);
    if (chip.cut_mode == FLASH_CUT_TORN) {
        size_t whole = noise(&state) % (FLASH_SECTOR_SIZE * 3 / 4);
        size_t mixed = noise(&state) % 256;
        memset(cell, 0xff, whole);
        for (size_t i = whole; i < whole + mixed; i++) {
            cell[i] |= (uint8_t)noise(&state);
        }
    } else {
        // From a few weak bits to nearly all: how far the erase had come.
        uint32_t level = noise(&state) & 0xff;
        for (size_t i = 0; i < FLASH_SECTOR_SIZE; i++) {
            for (int bit = 0; bit < 8; bit++) {
                if ((noise(&state) & 0xff) < level) {
                    cell[i] |= (uint8_t)(1u << bit);
                }
            }
        }
    }
}

// True when the operation that asks is the one at which the power goes.
static bool cut_now(void) {
    return chip.cut_in != 0 && --chip.cut_in == 0;
}

static int power_gone(void) {
    chip.dead = true;
    if (chip.on_cut != NULL) {
        chip.on_cut();
    }
    return BOARD_ERR_FLASH_OP_FAIL;
}

void flash_cut_after(uint64_t n, int mode, uint32_t seed) {
    chip.cut_in = n;
    chip.cut_mode = mode;
    chip.cut_seed = seed;
}

void flash_on_cut(void (*hook)(void)) {
    chip.on_cut = hook;
}

bool flash_power_lost(void) {
    return chip.dead;
}

void flash_power_on(void) {
    chip.dead = false;
    chip.cut_in = 0;
}

// ---- the three things the chip can do

int flash_read(uint32_t offset, void *buf, size_t len) {
    if (flash_outside(offset, len)) {
        return BOARD_ERR_INVALID_SIZE;
    }
    if (chip.dead) {
        return BOARD_ERR_FLASH_OP_FAIL;
    }
    if (len != 0) {
        memcpy(buf, chip.image + offset, len);
    }
    return BOARD_OK;
}

int flash_program(uint32_t offset, const void *buf, size_t len) {
    if (flash_outside(offset, len)) {
        return BOARD_ERR_INVALID_SIZE;
    }
    const uint8_t *src = buf;
    while (len > 0) {
        if (chip.dead) {
            return BOARD_ERR_FLASH_OP_FAIL;
        }
        size_t part = FLASH_PAGE_SIZE - offset % FLASH_PAGE_SIZE;
        if (part > len) {
            part = len;
        }
        if (cut_now()) {
            if (chip.cut_mode != FLASH_CUT_CLEAN) {
                tear_program(offset, src, part);
            }
            return power_gone();
        }
        for (size_t i = 0; i < part; i++) {
            chip.image[offset + i] &= src[i];
        }
        chip.counts.programs++;
        chip.counts.bytes_programmed += part;
        offset += (uint32_t)part;
        src += part;
        len -= part;
    }
    return chip.dead ? BOARD_ERR_FLASH_OP_FAIL : BOARD_OK;
}

int flash_erase_sector(uint32_t offset) {
    if (offset % FLASH_SECTOR_SIZE != 0) {
        return BOARD_ERR_INVALID_ARG;
    }
    if (flash_outside(offset, FLASH_SECTOR_SIZE)) {
        return BOARD_ERR_INVALID_SIZE;
    }
    if (chip.dead) {
        return BOARD_ERR_FLASH_OP_FAIL;
    }
    if (cut_now()) {
        if (chip.cut_mode != FLASH_CUT_CLEAN) {
            tear_erase(offset);
            chip.wear[offset / FLASH_SECTOR_SIZE]++;
            chip.counts.erases++;
        }
        return power_gone();
    }
    memset(chip.image + offset, 0xff, FLASH_SECTOR_SIZE);
    chip.wear[offset / FLASH_SECTOR_SIZE]++;
    chip.counts.erases++;
    return BOARD_OK;
}

void flash_counts(flash_counts_t *counts) {
    *counts = chip.counts;
}

void flash_counts_reset(void) {
    memset(&chip.counts, 0, sizeof(chip.counts));
    if (chip.wear != NULL) {
        memset(chip.wear, 0, chip.size / FLASH_SECTOR_SIZE * sizeof(uint32_t));
    }
}

uint32_t flash_sector_erases(uint32_t offset) {
    return flash_outside(offset, 1) ? 0 : chip.wear[offset / FLASH_SECTOR_SIZE];
}

uint64_t flash_operations(void) {
    return chip.counts.erases + chip.counts.programs;
}
