// SPDX-License-Identifier: MIT
// The board's flash chip over one image file; see flash.h for what it promises.
//
// Owns the mapping of the image, the counters and the planned power cut. Never sets a bit
// without an erase and never changes the image outside flash_program and
// flash_erase_sector, so that every change is counted and can be cut.
#include "flash.h"

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
    flash_partition_t table[FLASH_MAX_PARTITIONS];
    int table_len;
    bool running_known;
    uint32_t running_offset;    // of the application that the bootloader chose
} chip = { .fd = -1 };

static int fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(chip.error, sizeof(chip.error), format, args);
    va_end(args);
    return -1;
}

const char *flash_error(void) {
    return chip.error;
}

// ---- names of codes

static const struct {
    int code;
    const char *name;
} error_names[] = {
    { BOARD_OK, "ESP_OK" },
    { BOARD_FAIL, "ESP_FAIL" },
    { BOARD_ERR_NO_MEM, "ESP_ERR_NO_MEM" },
    { BOARD_ERR_INVALID_ARG, "ESP_ERR_INVALID_ARG" },
    { BOARD_ERR_INVALID_STATE, "ESP_ERR_INVALID_STATE" },
    { BOARD_ERR_INVALID_SIZE, "ESP_ERR_INVALID_SIZE" },
    { BOARD_ERR_NOT_FOUND, "ESP_ERR_NOT_FOUND" },
    { BOARD_ERR_NOT_SUPPORTED, "ESP_ERR_NOT_SUPPORTED" },
    { BOARD_ERR_TIMEOUT, "ESP_ERR_TIMEOUT" },
    { 0x1101, "ESP_ERR_NVS_NOT_INITIALIZED" },
    { 0x1102, "ESP_ERR_NVS_NOT_FOUND" },
    { 0x1103, "ESP_ERR_NVS_TYPE_MISMATCH" },
    { 0x1104, "ESP_ERR_NVS_READ_ONLY" },
    { 0x1105, "ESP_ERR_NVS_NOT_ENOUGH_SPACE" },
    { 0x1106, "ESP_ERR_NVS_INVALID_NAME" },
    { 0x1107, "ESP_ERR_NVS_INVALID_HANDLE" },
    { 0x1108, "ESP_ERR_NVS_REMOVE_FAILED" },
    { 0x1109, "ESP_ERR_NVS_KEY_TOO_LONG" },
    { 0x110a, "ESP_ERR_NVS_PAGE_FULL" },
    { 0x110b, "ESP_ERR_NVS_INVALID_STATE" },
    { 0x110c, "ESP_ERR_NVS_INVALID_LENGTH" },
    { 0x110d, "ESP_ERR_NVS_NO_FREE_PAGES" },
    { 0x110e, "ESP_ERR_NVS_VALUE_TOO_LONG" },
    { 0x110f, "ESP_ERR_NVS_PART_NOT_FOUND" },
    { 0x1110, "ESP_ERR_NVS_NEW_VERSION_FOUND" },
    { BOARD_ERR_OTA_PARTITION_CONFLICT, "ESP_ERR_OTA_PARTITION_CONFLICT" },
    { BOARD_ERR_OTA_SELECT_INFO_INVALID, "ESP_ERR_OTA_SELECT_INFO_INVALID" },
    { BOARD_ERR_OTA_VALIDATE_FAILED, "ESP_ERR_OTA_VALIDATE_FAILED" },
    { BOARD_ERR_FLASH_OP_FAIL, "ESP_ERR_FLASH_OP_FAIL" },
};

const char *board_err_name(int code) {
    for (size_t i = 0; i < sizeof(error_names) / sizeof(error_names[0]); i++) {
        if (error_names[i].code == code) {
            return error_names[i].name;
        }
    }
    return "UNKNOWN ERROR";
}

// ---- the image

int flash_open(const char *path) {
    flash_close();
    chip.error[0] = '\0';
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return fail("cannot open the flash image %s: %s", path, strerror(errno));
    }
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return fail("the flash image %s is not a regular file", path);
    }
    const uint32_t mib = 1024 * 1024;
    if (st.st_size != 4 * mib && st.st_size != 8 * mib && st.st_size != 16 * mib) {
        close(fd);
        return fail("the flash image %s has %lld bytes: a chip has 4, 8 or 16 MiB; "
            "make it anew with `outpost image`", path, (long long)st.st_size);
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        close(fd);
        return fail("the flash image %s is in use by another board", path);
    }
    void *image = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (image == MAP_FAILED) {
        close(fd);
        return fail("cannot map the flash image %s: %s", path, strerror(errno));
    }
    uint32_t *wear = calloc((size_t)st.st_size / FLASH_SECTOR_SIZE, sizeof(uint32_t));
    if (wear == NULL) {
        munmap(image, (size_t)st.st_size);
        close(fd);
        return fail("no memory for the counters of the flash image");
    }
    chip.fd = fd;
    chip.image = image;
    chip.size = (uint32_t)st.st_size;
    chip.wear = wear;
    flash_counts_reset();
    chip.cut_in = 0;
    chip.dead = false;
    chip.table_len = 0;
    chip.running_known = false;
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
    chip.table_len = 0;
}

bool flash_is_open(void) {
    return chip.image != NULL;
}

uint32_t flash_size(void) {
    return chip.size;
}

static bool outside(uint32_t offset, size_t len) {
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
    if (outside(offset, len)) {
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
    if (outside(offset, len)) {
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
    if (outside(offset, FLASH_SECTOR_SIZE)) {
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
    return outside(offset, 1) ? 0 : chip.wear[offset / FLASH_SECTOR_SIZE];
}

uint64_t flash_operations(void) {
    return chip.counts.erases + chip.counts.programs;
}

// ---- MD5 (RFC 1321): the partition table carries one, and nothing else here needs it

static const uint8_t md5_shift[16] = { 7, 12, 17, 22, 5, 9, 14, 20, 4, 11, 16, 23, 6, 10, 15, 21 };

static uint32_t rotate(uint32_t x, unsigned n) {
    return x << n | x >> (32 - n);
}

// The constants of the standard: floor(2^32 * |sin(i + 1)|).
static const uint32_t md5_sine[64] = {
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391,
};

static uint32_t le32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put_le32(uint8_t *p, uint32_t value) {
    p[0] = (uint8_t)value;
    p[1] = (uint8_t)(value >> 8);
    p[2] = (uint8_t)(value >> 16);
    p[3] = (uint8_t)(value >> 24);
}

static void md5_block(uint32_t sum[4], const uint8_t *block) {
    uint32_t a = sum[0], b = sum[1], c = sum[2], d = sum[3];
    for (unsigned i = 0; i < 64; i++) {
        uint32_t f;
        unsigned g;
        switch (i / 16) {
            case 0:
                f = (b & c) | (~b & d);
                g = i;
                break;
            case 1:
                f = (d & b) | (~d & c);
                g = (5 * i + 1) % 16;
                break;
            case 2:
                f = b ^ c ^ d;
                g = (3 * i + 5) % 16;
                break;
            default:
                f = c ^ (b | ~d);
                g = (7 * i) % 16;
                break;
        }
        uint32_t next = b + rotate(a + f + md5_sine[i] + le32(block + 4 * g),
            md5_shift[i / 16 * 4 + i % 4]);
        a = d;
        d = c;
        c = b;
        b = next;
    }
    sum[0] += a;
    sum[1] += b;
    sum[2] += c;
    sum[3] += d;
}

static void md5(const uint8_t *data, size_t len, uint8_t digest[16]) {
    uint32_t sum[4] = { 0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476 };
    size_t done = 0;
    for (; len - done >= 64; done += 64) {
        md5_block(sum, data + done);
    }
    uint8_t tail[128] = { 0 };
    size_t rest = len - done;
    memcpy(tail, data + done, rest);
    tail[rest] = 0x80;
    size_t blocks = rest < 56 ? 1 : 2;
    put_le32(tail + blocks * 64 - 8, (uint32_t)(len << 3));
    put_le32(tail + blocks * 64 - 4, (uint32_t)(len >> 29));
    for (size_t i = 0; i < blocks; i++) {
        md5_block(sum, tail + i * 64);
    }
    for (int i = 0; i < 4; i++) {
        put_le32(digest + 4 * i, sum[i]);
    }
}

// ---- the partition table

#define ENTRY_SIZE 32u
#define MAGIC_PARTITION 0x50aa
#define MAGIC_MD5 0xebeb

static bool all_ff(const uint8_t *p, size_t len) {
    for (size_t i = 0; i < len; i++) {
        if (p[i] != 0xff) {
            return false;
        }
    }
    return true;
}

static int check_partition(const flash_partition_t *p, int index) {
    if (p->offset % FLASH_SECTOR_SIZE != 0 || p->size == 0 || p->size % FLASH_SECTOR_SIZE != 0) {
        return fail("the partition table is corrupt: partition %d (%s) is not made of whole "
            "4 KiB sectors; flash the board again", index, p->label);
    }
    if (p->offset < FLASH_TABLE_OFFSET + FLASH_SECTOR_SIZE) {
        return fail("the partition table is corrupt: partition %d (%s) lies over the bootloader "
            "or the table itself; flash the board again", index, p->label);
    }
    if (outside(p->offset, p->size)) {
        return fail("the partition table is corrupt or made for a larger chip: partition %d (%s) "
            "ends beyond %u MiB; flash the board again", index, p->label, chip.size >> 20);
    }
    for (int i = 0; i < index; i++) {
        const flash_partition_t *other = &chip.table[i];
        if (p->offset < other->offset + other->size && other->offset < p->offset + p->size) {
            return fail("the partition table is corrupt: partitions %s and %s overlap; "
                "flash the board again", other->label, p->label);
        }
    }
    return 0;
}

// A label comes from flash: whatever is in it must not spoil the console.
static void copy_label(char label[17], const uint8_t *raw) {
    for (int i = 0; i < 16; i++) {
        uint8_t c = raw[i];
        label[i] = c == 0 ? '\0' : c < 0x20 || c > 0x7e ? '?' : (char)c;
        if (c == 0) {
            break;
        }
    }
    label[16] = '\0';
}

int flash_partitions(const flash_partition_t **table) {
    chip.table_len = 0;
    if (chip.image == NULL) {
        return fail("no flash image is attached");
    }
    const uint8_t *raw = chip.image + FLASH_TABLE_OFFSET;
    int count = 0;
    bool ended = false;
    bool summed = false;
    memset(chip.table, 0, sizeof(chip.table));
    if (all_ff(raw, ENTRY_SIZE)) {
        return fail("there is no partition table at 0x8000 (the flash is empty there); "
            "flash the board again");
    }
    for (uint32_t at = 0; at < FLASH_TABLE_SIZE && !ended; at += ENTRY_SIZE) {
        const uint8_t *entry = raw + at;
        unsigned magic = (unsigned)entry[0] | (unsigned)entry[1] << 8;
        if (magic == MAGIC_PARTITION) {
            if (summed || count == FLASH_MAX_PARTITIONS) {
                return fail("the partition table is corrupt: there is an entry after its end; "
                    "flash the board again");
            }
            flash_partition_t *p = &chip.table[count];
            p->type = entry[2];
            p->subtype = entry[3];
            p->offset = le32(entry + 4);
            p->size = le32(entry + 8);
            memset(p->label, 0, sizeof(p->label));
            copy_label(p->label, entry + 12);
            p->encrypted = (le32(entry + 28) & 1) != 0;
            p->readonly = (le32(entry + 28) & 2) != 0;
            count++;
        } else if (magic == MAGIC_MD5 && !summed && all_ff(entry + 2, 14)) {
            uint8_t digest[16];
            md5(raw, at, digest);
            if (memcmp(digest, entry + 16, sizeof(digest)) != 0) {
                return fail("the partition table is corrupt: its MD5 does not match; "
                    "flash the board again");
            }
            summed = true;
        } else if (all_ff(entry, ENTRY_SIZE)) {
            ended = true;
        } else {
            return fail("the partition table is corrupt: entry %u at 0x%x is not a partition "
                "(it begins with %02x %02x); flash the board again",
                at / ENTRY_SIZE, FLASH_TABLE_OFFSET + at, entry[0], entry[1]);
        }
    }
    if (count == 0) {
        return fail("the partition table is corrupt: it lists no partition; flash the board again");
    }
    if (!summed) {
        return fail("the partition table is corrupt: its MD5 is missing; flash the board again");
    }
    for (int i = 0; i < count; i++) {
        if (check_partition(&chip.table[i], i) != 0) {
            return -1;
        }
    }
    chip.table_len = count;
    if (table != NULL) {
        *table = chip.table;
    }
    return count;
}

const flash_partition_t *flash_partition_find(int type, int subtype, const char *label) {
    if (chip.table_len == 0 && flash_partitions(NULL) < 0) {
        return NULL;
    }
    for (int i = 0; i < chip.table_len; i++) {
        const flash_partition_t *p = &chip.table[i];
        if ((type == FLASH_TYPE_ANY || p->type == type)
            && (subtype == FLASH_SUBTYPE_ANY || p->subtype == subtype)
            && (label == NULL || strcmp(label, p->label) == 0)) {
            return p;
        }
    }
    return NULL;
}

static int check_span(const flash_partition_t *p, uint32_t offset, size_t len) {
    if (offset > p->size) {
        return BOARD_ERR_INVALID_ARG;
    }
    return len > p->size - offset ? BOARD_ERR_INVALID_SIZE : BOARD_OK;
}

int flash_partition_read(const flash_partition_t *p, uint32_t offset, void *buf, size_t len) {
    int err = check_span(p, offset, len);
    return err != BOARD_OK ? err : flash_read(p->offset + offset, buf, len);
}

int flash_partition_write(const flash_partition_t *p, uint32_t offset, const void *buf, size_t len) {
    int err = check_span(p, offset, len);
    return err != BOARD_OK ? err : flash_program(p->offset + offset, buf, len);
}

int flash_partition_erase(const flash_partition_t *p, uint32_t offset, size_t len) {
    int err = check_span(p, offset, len);
    if (err != BOARD_OK) {
        return err;
    }
    if (len % FLASH_SECTOR_SIZE != 0) {
        return BOARD_ERR_INVALID_SIZE;
    }
    if (offset % FLASH_SECTOR_SIZE != 0) {
        return BOARD_ERR_INVALID_ARG;
    }
    for (uint32_t at = 0; at < len; at += FLASH_SECTOR_SIZE) {
        err = flash_erase_sector(p->offset + offset + at);
        if (err != BOARD_OK) {
            return err;
        }
    }
    return BOARD_OK;
}

uint64_t flash_partition_erases(const flash_partition_t *p) {
    uint64_t sum = 0;
    for (uint32_t at = 0; at < p->size; at += FLASH_SECTOR_SIZE) {
        sum += flash_sector_erases(p->offset + at);
    }
    return sum;
}

// ---- which application starts
//
// The otadata partition has two sectors, each with one record at its beginning: a counter,
// a label (unused), a state and the CRC of the counter. The higher valid counter wins and
// names the slot: (counter - 1) modulo the number of slots. No record: the factory app.

#define OTA_RECORD 32u
#define OTA_STATE_NEW 0u
#define OTA_STATE_PENDING 1u
#define OTA_STATE_VALID 2u
#define OTA_STATE_INVALID 3u
#define OTA_STATE_ABORTED 4u

static const flash_partition_t *otadata(void) {
    const flash_partition_t *p =
        flash_partition_find(FLASH_TYPE_DATA, FLASH_SUBTYPE_OTADATA, NULL);
    return p != NULL && p->size >= 2 * FLASH_SECTOR_SIZE ? p : NULL;
}

static uint32_t ota_slots(void) {
    uint32_t count = 0;
    while (count < 16 && flash_partition_find(FLASH_TYPE_APP,
        (int)(FLASH_SUBTYPE_OTA_0 + count), NULL) != NULL) {
        count++;
    }
    return count;
}

static const flash_partition_t *ota_slot(uint32_t index) {
    return flash_partition_find(FLASH_TYPE_APP, (int)(FLASH_SUBTYPE_OTA_0 + index), NULL);
}

static uint32_t crc32_of_counter(uint32_t counter) {
    uint8_t bytes[4];
    put_le32(bytes, counter);
    uint32_t crc = 0;
    for (int i = 0; i < 4; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xedb88320u : 0);
        }
    }
    return ~crc;
}

// The counter of the record in sector `which`, 0 when it does not count.
static uint32_t ota_counter(const flash_partition_t *data, uint32_t which, uint32_t *state) {
    uint8_t record[OTA_RECORD];
    *state = 0xffffffffu;
    if (flash_partition_read(data, which * FLASH_SECTOR_SIZE, record, sizeof(record)) != BOARD_OK) {
        return 0;
    }
    uint32_t counter = le32(record);
    *state = le32(record + 24);
    if (counter == 0 || counter == 0xffffffffu || le32(record + 28) != crc32_of_counter(counter)
        || *state == OTA_STATE_INVALID || *state == OTA_STATE_ABORTED) {
        return 0;
    }
    return counter;
}

// The sector whose record rules (0 or 1), or -1.
static int ota_ruling(const flash_partition_t *data, uint32_t *counter, uint32_t *state) {
    uint32_t states[2];
    uint32_t counters[2] = {
        ota_counter(data, 0, &states[0]),
        ota_counter(data, 1, &states[1]),
    };
    // Both carry the same counter only while a confirmation was being written.
    bool second = counters[1] == counters[0] ? states[1] == OTA_STATE_VALID
        : counters[1] > counters[0];
    int which = second ? 1 : 0;
    *counter = counters[which];
    *state = states[which];
    return counters[which] == 0 ? -1 : which;
}

const flash_partition_t *flash_boot_partition(void) {
    const flash_partition_t *data = otadata();
    uint32_t slots = ota_slots();
    uint32_t counter, state;
    if (data != NULL && slots != 0 && ota_ruling(data, &counter, &state) >= 0) {
        return ota_slot((counter - 1) % slots);
    }
    const flash_partition_t *factory =
        flash_partition_find(FLASH_TYPE_APP, FLASH_SUBTYPE_FACTORY, NULL);
    return factory != NULL ? factory : ota_slot(0);
}

const flash_partition_t *flash_running_partition(void) {
    // The bootloader's choice is made at the start; a later set_boot does not change what runs.
    if (chip.table_len == 0 && flash_partitions(NULL) < 0) {
        return NULL;
    }
    if (!chip.running_known) {
        const flash_partition_t *boot = flash_boot_partition();
        chip.running_known = true;
        chip.running_offset = boot != NULL ? boot->offset : 0;
    }
    for (int i = 0; i < chip.table_len; i++) {
        if (chip.table[i].type == FLASH_TYPE_APP && chip.table[i].offset == chip.running_offset) {
            return &chip.table[i];
        }
    }
    return NULL;
}

const flash_partition_t *flash_next_update_partition(const flash_partition_t *from) {
    uint32_t slots = ota_slots();
    if (slots == 0 || from == NULL) {
        return NULL;
    }
    if (from->type == FLASH_TYPE_APP && from->subtype >= FLASH_SUBTYPE_OTA_0
        && from->subtype < FLASH_SUBTYPE_OTA_0 + slots) {
        return ota_slot((from->subtype - FLASH_SUBTYPE_OTA_0 + 1u) % slots);
    }
    return ota_slot(0);
}

// The first byte of an ESP32 application image. What runs now needs no proof: it runs.
static bool looks_bootable(const flash_partition_t *p) {
    uint8_t first = 0;
    return p == flash_running_partition()
        || (flash_partition_read(p, 0, &first, 1) == BOARD_OK && first == 0xe9);
}

static int write_ota_record(const flash_partition_t *data, uint32_t which, uint32_t counter,
    uint32_t state) {
    uint8_t record[OTA_RECORD];
    memset(record, 0xff, sizeof(record));
    put_le32(record, counter);
    put_le32(record + 24, state);
    put_le32(record + 28, crc32_of_counter(counter));
    int err = flash_partition_erase(data, which * FLASH_SECTOR_SIZE, FLASH_SECTOR_SIZE);
    return err != BOARD_OK ? err
        : flash_partition_write(data, which * FLASH_SECTOR_SIZE, record, sizeof(record));
}

int flash_set_boot_partition(const flash_partition_t *p) {
    if (p == NULL || p->type != FLASH_TYPE_APP) {
        return BOARD_ERR_INVALID_ARG;
    }
    if (!looks_bootable(p)) {
        return BOARD_ERR_OTA_VALIDATE_FAILED;
    }
    const flash_partition_t *data = otadata();
    uint32_t slots = ota_slots();
    if (data == NULL) {
        return BOARD_ERR_NOT_FOUND;
    }
    if (p->subtype == FLASH_SUBTYPE_FACTORY) {
        return flash_partition_erase(data, 0, 2 * FLASH_SECTOR_SIZE);
    }
    if (p->subtype < FLASH_SUBTYPE_OTA_0 || p->subtype >= FLASH_SUBTYPE_OTA_0 + slots) {
        return BOARD_ERR_INVALID_ARG;
    }
    uint32_t slot = p->subtype - FLASH_SUBTYPE_OTA_0;
    uint32_t counter = 0, state;
    int ruling = ota_ruling(data, &counter, &state);
    uint32_t next = slot + 1;
    while (next <= counter) {
        next += slots;
    }
    return write_ota_record(data, ruling == 0 ? 1 : 0, next, 0xffffffffu);
}

int flash_mark_app_valid(void) {
    const flash_partition_t *data = otadata();
    uint32_t counter, state;
    if (data == NULL) {
        return BOARD_ERR_NOT_FOUND;
    }
    int ruling = ota_ruling(data, &counter, &state);
    if (ruling < 0) {
        return BOARD_FAIL;
    }
    if (state == OTA_STATE_VALID) {
        return BOARD_OK;
    }
    // The other sector is written first, so that a power cut leaves one whole record.
    return write_ota_record(data, ruling == 0 ? 1 : 0, counter, OTA_STATE_VALID);
}
