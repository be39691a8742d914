// SPDX-License-Identifier: MIT
// The partition table at 0x8000, and reading, writing and erasing within a partition.
//
// Owns the table as last read. Never writes it, and trusts nothing in it before all is checked.
#include "bytes.h"
#include "flash_parts.h"
#include "md5.h"

#include <string.h>

#define ENTRY_SIZE 32u
#define MAGIC_PARTITION 0x50aa
#define MAGIC_MD5 0xebeb

static flash_partition_t entries[FLASH_MAX_PARTITIONS];
static int entries_len;

void flash_table_forget(void) {
    entries_len = 0;
    flash_running_forget();
}

static int check_partition(const flash_partition_t *p, int index) {
    if (p->offset % FLASH_SECTOR_SIZE != 0 || p->size == 0 || p->size % FLASH_SECTOR_SIZE != 0) {
        return flash_fail("the partition table is corrupt: partition %d (%s) is not made of whole "
            "4 KiB sectors; flash the board again", index, p->label);
    }
    if (p->offset < FLASH_TABLE_OFFSET + FLASH_SECTOR_SIZE) {
        return flash_fail("the partition table is corrupt: partition %d (%s) lies over the bootloader "
            "or the table itself; flash the board again", index, p->label);
    }
    if (flash_outside(p->offset, p->size)) {
        return flash_fail("the partition table is corrupt or made for a larger chip: partition %d (%s) "
            "ends beyond %u MiB; flash the board again", index, p->label, flash_size() >> 20);
    }
    for (int i = 0; i < index; i++) {
        const flash_partition_t *other = &entries[i];
        if (p->offset < other->offset + other->size && other->offset < p->offset + p->size) {
            return flash_fail("the partition table is corrupt: partitions %s and %s overlap; "
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
    entries_len = 0;
    if (!flash_is_open()) {
        return flash_fail("no flash image is attached");
    }
    const uint8_t *raw = flash_image() + FLASH_TABLE_OFFSET;
    int count = 0;
    bool ended = false;
    bool summed = false;
    memset(entries, 0, sizeof(entries));
    if (all_ff(raw, ENTRY_SIZE)) {
        return flash_fail("there is no partition table at 0x8000 (the flash is empty there); "
            "flash the board again");
    }
    for (uint32_t at = 0; at < FLASH_TABLE_SIZE && !ended; at += ENTRY_SIZE) {
        const uint8_t *entry = raw + at;
        unsigned magic = (unsigned)entry[0] | (unsigned)entry[1] << 8;
        if (magic == MAGIC_PARTITION) {
            if (summed || count == FLASH_MAX_PARTITIONS) {
                return flash_fail("the partition table is corrupt: there is an entry after its end; "
                    "flash the board again");
            }
            flash_partition_t *p = &entries[count];
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
                return flash_fail("the partition table is corrupt: its MD5 does not match; "
                    "flash the board again");
            }
            summed = true;
        } else if (all_ff(entry, ENTRY_SIZE)) {
            ended = true;
        } else {
            return flash_fail("the partition table is corrupt: entry %u at 0x%x is not a partition "
                "(it begins with %02x %02x); flash the board again",
                at / ENTRY_SIZE, FLASH_TABLE_OFFSET + at, entry[0], entry[1]);
        }
    }
    if (count == 0) {
        return flash_fail("the partition table is corrupt: it lists no partition; flash the board again");
    }
    if (!summed) {
        return flash_fail("the partition table is corrupt: its MD5 is missing; flash the board again");
    }
    for (int i = 0; i < count; i++) {
        if (check_partition(&entries[i], i) != 0) {
            return -1;
        }
    }
    entries_len = count;
    if (table != NULL) {
        *table = entries;
    }
    return count;
}

const flash_partition_t *flash_partition_find(int type, int subtype, const char *label) {
    if (entries_len == 0 && flash_partitions(NULL) < 0) {
        return NULL;
    }
    for (int i = 0; i < entries_len; i++) {
        const flash_partition_t *p = &entries[i];
        if ((type == FLASH_TYPE_ANY || p->type == type)
            && (subtype == FLASH_SUBTYPE_ANY || p->subtype == subtype)
            && (label == NULL || strcmp(label, p->label) == 0)) {
            return p;
        }
    }
    return NULL;
}

const flash_partition_t *flash_app_at(uint32_t offset) {
    for (int i = 0; i < entries_len; i++) {
        if (entries[i].type == FLASH_TYPE_APP && entries[i].offset == offset) {
            return &entries[i];
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
