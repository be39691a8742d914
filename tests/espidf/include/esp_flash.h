// Stands in for ESP-IDF's header of this name: what our C uses of it, with the types it has there.
#pragma once
#include "esp_err.h"
typedef struct esp_flash_t esp_flash_t;
