// SPDX-License-Identifier: MIT
// Which application starts, as ESP-IDF's bootloader and esp_ota_ops decide it.
//
// Owns the otadata partition. It has two sectors, each with one record at its beginning: a counter,
// a label (unused), a state and the CRC of the counter. The higher valid counter wins and
// names the slot: (counter - 1) modulo the number of slots. No record: the factory app.
// As with CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE, which MicroPython's boards have, a new application
// gets one start: who has not confirmed itself by the next one is passed over. A record that is
// changed is erased first, as on the chip: a power cut there means the application before it.
#include "bytes.h"
#include "flash_parts.h"

#include <string.h>

#define OTA_RECORD 32u
#define OTA_STATE_NEW 0u
#define OTA_STATE_PENDING 1u
#define OTA_STATE_VALID 2u
#define OTA_STATE_INVALID 3u
#define OTA_STATE_ABORTED 4u

static bool running_known;
static uint32_t running_offset;     // of the application that the bootloader chose

void flash_running_forget(void) {
    running_known = false;
}

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
    int which = counters[1] > counters[0] ? 1 : 0;
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
    if (!running_known) {
        const flash_partition_t *boot = flash_boot_partition();
        running_known = boot != NULL;
        running_offset = boot != NULL ? boot->offset : 0;
    }
    return flash_app_at(running_offset);
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
    return write_ota_record(data, ruling == 0 ? 1 : 0, next, OTA_STATE_NEW);
}

void flash_bootloader(void) {
    const flash_partition_t *data = otadata();
    uint32_t counter, state;
    if (data == NULL || ota_slots() == 0) {
        return;
    }
    for (uint32_t which = 0; which < 2; which++) {
        counter = ota_counter(data, which, &state);
        if (counter != 0 && state == OTA_STATE_PENDING) {
            write_ota_record(data, which, counter, OTA_STATE_ABORTED);
        }
    }
    int ruling = ota_ruling(data, &counter, &state);
    if (ruling >= 0 && state == OTA_STATE_NEW) {
        write_ota_record(data, (uint32_t)ruling, counter, OTA_STATE_PENDING);
    }
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
    return write_ota_record(data, (uint32_t)ruling, counter, OTA_STATE_VALID);
}
