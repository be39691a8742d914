// SPDX-License-Identifier: MIT
// mbedtls on the stock leg: MicroPython's own configuration, its memory counted.
//
// Owns the two hooks that the measurements need (allocation and the board's clock). Never
// changes what a stock build can do or how large its buffers are.
#ifndef OUTPOST_MBEDTLS_CONFIG_STOCK_H
#define OUTPOST_MBEDTLS_CONFIG_STOCK_H

#include <stddef.h>
#include <time.h>

#include "mbedtls/mbedtls_config_port.h"

void *board_cheap_calloc(size_t count, size_t size);
void board_cheap_free(void *memory);
time_t board_mbedtls_time(time_t *timer);
#define MBEDTLS_PLATFORM_MEMORY
#define MBEDTLS_PLATFORM_CALLOC_MACRO board_cheap_calloc
#define MBEDTLS_PLATFORM_FREE_MACRO board_cheap_free
#define MBEDTLS_PLATFORM_TIME_MACRO board_mbedtls_time

#endif
