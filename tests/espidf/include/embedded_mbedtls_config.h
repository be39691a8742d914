// mbedtls as ESP-IDF would give it to tlspolicy: MicroPython's common configuration with a clock
// that the port sets, then tlspolicy's.
#include "extmod/mbedtls/mbedtls_config_common.h"
#define MBEDTLS_PLATFORM_TIME_ALT
#include "tlspolicy_config.h"
