// SPDX-License-Identifier: MIT
// The names that ESP-IDF gives its error codes.
//
// Owns the list. Never decides what an error is.
#include "flash.h"

static const struct {
    int code;
    const char *name;
} error_names[] = {
    { BOARD_OK, "ESP_OK" },
    { BOARD_FAIL, "ESP_FAIL" },
    { BOARD_ERR_NO_MEM, "ESP_ERR_NO_MEM" },
    { BOARD_ERR_INVALID_ARG, "ESP_ERR_INVALID_ARG" },
    { BOARD_ERR_INVALID_STATE, "ESP_ERR_INVALID_STATE" },
    { BOARD_ERR_INVALID_SIZE, "ESP_ERR_INVALID_SIZE" },
    { BOARD_ERR_NOT_FOUND, "ESP_ERR_NOT_FOUND" },
    { BOARD_ERR_NOT_SUPPORTED, "ESP_ERR_NOT_SUPPORTED" },
    { BOARD_ERR_TIMEOUT, "ESP_ERR_TIMEOUT" },
    { BOARD_ERR_NOT_ALLOWED, "ESP_ERR_NOT_ALLOWED" },
    { 0x1101, "ESP_ERR_NVS_NOT_INITIALIZED" },
    { 0x1102, "ESP_ERR_NVS_NOT_FOUND" },
    { 0x1103, "ESP_ERR_NVS_TYPE_MISMATCH" },
    { 0x1104, "ESP_ERR_NVS_READ_ONLY" },
    { 0x1105, "ESP_ERR_NVS_NOT_ENOUGH_SPACE" },
    { 0x1106, "ESP_ERR_NVS_INVALID_NAME" },
    { 0x1107, "ESP_ERR_NVS_INVALID_HANDLE" },
    { 0x1108, "ESP_ERR_NVS_REMOVE_FAILED" },
    { 0x1109, "ESP_ERR_NVS_KEY_TOO_LONG" },
    { 0x110a, "ESP_ERR_NVS_PAGE_FULL" },
    { 0x110b, "ESP_ERR_NVS_INVALID_STATE" },
    { 0x110c, "ESP_ERR_NVS_INVALID_LENGTH" },
    { 0x110d, "ESP_ERR_NVS_NO_FREE_PAGES" },
    { 0x110e, "ESP_ERR_NVS_VALUE_TOO_LONG" },
    { 0x110f, "ESP_ERR_NVS_PART_NOT_FOUND" },
    { 0x1110, "ESP_ERR_NVS_NEW_VERSION_FOUND" },
    { 0x1116, "ESP_ERR_NVS_KEYS_NOT_INITIALIZED" },
    { 0x1117, "ESP_ERR_NVS_CORRUPT_KEY_PART" },
    { BOARD_ERR_OTA_PARTITION_CONFLICT, "ESP_ERR_OTA_PARTITION_CONFLICT" },
    { BOARD_ERR_OTA_SELECT_INFO_INVALID, "ESP_ERR_OTA_SELECT_INFO_INVALID" },
    { BOARD_ERR_OTA_VALIDATE_FAILED, "ESP_ERR_OTA_VALIDATE_FAILED" },
    { BOARD_ERR_FLASH_OP_FAIL, "ESP_ERR_FLASH_OP_FAIL" },
};

const char *board_err_name(int code) {
    for (size_t i = 0; i < sizeof(error_names) / sizeof(error_names[0]); i++) {
        if (error_names[i].code == code) {
            return error_names[i].name;
        }
    }
    return "UNKNOWN ERROR";
}
