// Stands in for ESP-IDF's header of this name: what our C uses of it, with the types it has there.
#pragma once
#include "esp_partition.h"
#include "nvs.h"
esp_err_t nvs_flash_init(void);
