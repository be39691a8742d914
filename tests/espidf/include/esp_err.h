// Stands in for ESP-IDF's header of this name: what our C uses of it, with the types it has there.
#pragma once
#include <stdint.h>
typedef int esp_err_t;
#define ESP_OK (0)
#define ESP_ERR_NO_MEM (0x101)
#define ESP_ERR_NOT_FOUND (0x105)
#define ESP_ERR_NOT_SUPPORTED (0x106)
#define ESP_ERR_NOT_ALLOWED (0x10d)
const char *esp_err_to_name(esp_err_t code);
