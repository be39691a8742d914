// SPDX-License-Identifier: MIT
// What the chip, the partition table and the choice of the application share; flash.h is the rest.
#ifndef OUTPOST_FLASH_PARTS_H
#define OUTPOST_FLASH_PARTS_H

#include "flash.h"

// Keeps the sentence that flash_error() gives; answers -1.
int flash_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
// The mapped image, to be read; NULL where none is open.
const uint8_t *flash_image(void);
bool flash_outside(uint32_t offset, size_t len);

// For another image: the table, and with it the running application, is no longer known.
void flash_table_forget(void);
void flash_running_forget(void);
// The application that begins there in the table as last read, or NULL.
const flash_partition_t *flash_app_at(uint32_t offset);

#endif
