// Stands in for ESP-IDF's header of this name: what our C uses of it, with the types it has there.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "esp_err.h"
typedef enum { ESP_PARTITION_TYPE_APP = 0, ESP_PARTITION_TYPE_DATA = 1 } esp_partition_type_t;
typedef enum {
    ESP_PARTITION_SUBTYPE_DATA_NVS = 2,
    ESP_PARTITION_SUBTYPE_DATA_NVS_KEYS = 4,
} esp_partition_subtype_t;
typedef enum { ESP_PARTITION_MMAP_DATA, ESP_PARTITION_MMAP_INST } esp_partition_mmap_memory_t;
typedef uint32_t esp_partition_mmap_handle_t;
typedef struct esp_flash_t esp_flash_t;
typedef struct {
    esp_flash_t *flash_chip;
    esp_partition_type_t type;
    esp_partition_subtype_t subtype;
    uint32_t address;
    uint32_t size;
    uint32_t erase_size;
    char label[17];
    bool encrypted;
    bool readonly;
} esp_partition_t;
const esp_partition_t *esp_partition_find_first(
    esp_partition_type_t type, esp_partition_subtype_t subtype, const char *label);
esp_err_t esp_partition_read(const esp_partition_t *p, size_t at, void *to, size_t len);
esp_err_t esp_partition_write(const esp_partition_t *p, size_t at, const void *from, size_t len);
esp_err_t esp_partition_erase_range(const esp_partition_t *p, size_t at, size_t len);
esp_err_t esp_partition_mmap(const esp_partition_t *p, size_t at, size_t len,
    esp_partition_mmap_memory_t memory, const void **to, esp_partition_mmap_handle_t *handle);
