// Stands in for ESP-IDF's header of this name: what our C uses of it, with the types it has there.
#pragma once
#include "esp_err.h"
typedef enum { WIFI_MODE_NULL = 0, WIFI_MODE_STA, WIFI_MODE_AP, WIFI_MODE_APSTA } wifi_mode_t;
esp_err_t esp_wifi_set_mode(wifi_mode_t mode);
