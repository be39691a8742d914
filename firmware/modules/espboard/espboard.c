// SPDX-License-Identifier: MIT
// What our ESP32 boards do before any Python runs, and what they never do.
//
// Owns the start of the NVS (MICROPY_BOARD_STARTUP in outpost_board.h). Stock MicroPython erases the
// NVS, identity and all, when it finds no free page or a newer format in it. Here nothing is ever
// erased: an NVS without a free page is opened for reading, so that the board still knows who it is
// (tlspolicy_store.c gives esp32.NVS, which asks for writing, what there is).
// Never lets Wi-Fi become an access point, whatever Python asks for.

#include <stdio.h>

#include "esp_err.h"
#include "esp_partition.h"
#include "esp_wifi.h"
#include "nvs_flash.h"

void outpost_startup(void);
esp_err_t __real_esp_wifi_set_mode(wifi_mode_t mode);
esp_err_t __wrap_esp_wifi_set_mode(wifi_mode_t mode);

// ESP-IDF wants a free page of a partition that it may write, and none of one marked read-only. It
// looks the partition up in its own list, in RAM, for a plain NVS and for an encrypted one: marked
// there, as "readonly" in the table would do it, both are opened.
static esp_err_t open_for_reading(void) {
    esp_partition_t *listed = (esp_partition_t *)esp_partition_find_first(
        ESP_PARTITION_TYPE_DATA, ESP_PARTITION_SUBTYPE_DATA_NVS, "nvs");
    if (listed == NULL) {
        return ESP_ERR_NOT_FOUND;
    }
    listed->readonly = true;
    return nvs_flash_init();
}

void outpost_startup(void) {
    esp_err_t err = nvs_flash_init();
    if (err == ESP_OK) {
        return;
    }
    if (err == ESP_ERR_NVS_NO_FREE_PAGES && open_for_reading() == ESP_OK) {
        printf("The NVS has no free page: it can be read, not written. Write the image again.\n");
        return;
    }
    printf("The NVS cannot be used (%s) and was left as it is. Write the image again.\n",
        esp_err_to_name(err));
}

esp_err_t __wrap_esp_wifi_set_mode(wifi_mode_t mode) {
    if (mode != WIFI_MODE_NULL && mode != WIFI_MODE_STA) {
        return ESP_ERR_NOT_SUPPORTED;
    }
    return __real_esp_wifi_set_mode(mode);
}
