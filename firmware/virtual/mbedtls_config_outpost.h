// SPDX-License-Identifier: MIT
// mbedtls in our firmware, on the host: MicroPython's own configuration with tlspolicy's.
//
// Owns the way that allocation and clock take through tlspolicy.
// Never removes a suite: what may be used is decided in tlspolicy.c.
#ifndef OUTPOST_MBEDTLS_CONFIG_OUTPOST_H
#define OUTPOST_MBEDTLS_CONFIG_OUTPOST_H

#include <stddef.h>
#include <time.h>

#include "mbedtls/mbedtls_config_port.h"
#include "../modules/tlspolicy/tlspolicy_config.h"

void *tlspolicy_calloc(size_t count, size_t size);
void tlspolicy_free(void *memory);
time_t tlspolicy_time(time_t *timer);
#define MBEDTLS_PLATFORM_MEMORY
#define MBEDTLS_PLATFORM_CALLOC_MACRO tlspolicy_calloc
#define MBEDTLS_PLATFORM_FREE_MACRO tlspolicy_free
#define MBEDTLS_PLATFORM_TIME_MACRO tlspolicy_time

#endif
