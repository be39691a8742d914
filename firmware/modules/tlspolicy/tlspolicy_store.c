// SPDX-License-Identifier: MIT
// Where the device's private keys lie, and who may not go there.
//
// Owns the NVS namespace "outpost_keys": one blob "k0" to "k7" for each slot. It is written through
// ESP-IDF's nvs_* calls alone, which the virtual board has under the same names. No other code
// can open that namespace (--wrap=nvs_open), nor read or write the NVS as raw bytes.
// Never hands a key to Python.

#include <string.h>

#include "py/mperrno.h"

#include "tlspolicy_internal.h"

#include "mbedtls/platform_util.h"

#include "nvs.h"

#define KEYS_NAMESPACE "outpost_keys"
#define KEY_FORM (1)

esp_err_t __real_nvs_open(const char *name, nvs_open_mode_t mode, nvs_handle_t *handle);
esp_err_t __wrap_nvs_open(const char *name, nvs_open_mode_t mode, nvs_handle_t *handle);

// What everybody else calls: esp32.NVS too.
esp_err_t __wrap_nvs_open(const char *name, nvs_open_mode_t mode, nvs_handle_t *handle) {
    if (name != NULL && strcmp(name, KEYS_NAMESPACE) == 0) {
        return ESP_ERR_NVS_INVALID_NAME;
    }
    esp_err_t err = __real_nvs_open(name, mode, handle);
    if (err == ESP_ERR_NOT_ALLOWED && mode == NVS_READWRITE) {
        // The NVS has no free page and was opened for reading (espboard.c). esp32.NVS asks for both:
        // it gets what there is, so that the board still knows who it is; what it sets is refused.
        err = __real_nvs_open(name, NVS_READONLY, handle);
    }
    return err;
}

static void name_of(unsigned slot, char name[3]) {
    name[0] = 'k';
    name[1] = (char)('0' + slot);
    name[2] = '\0';
}

int tlspolicy_key_load(unsigned slot, tlspolicy_key_t *key) {
    char name[3];
    nvs_handle_t handle;
    name_of(slot, name);
    esp_err_t err = __real_nvs_open(KEYS_NAMESPACE, NVS_READONLY, &handle);
    if (err != ESP_OK) {
        return err;
    }
    size_t len = sizeof(*key);
    err = nvs_get_blob(handle, name, key, &len);
    nvs_close(handle);
    if (err == ESP_OK && (len != sizeof(*key) || key->form != KEY_FORM)) {
        err = ESP_ERR_NVS_INVALID_LENGTH;
    }
    if (err != ESP_OK) {
        mbedtls_platform_zeroize(key, sizeof(*key));
    }
    return err;
}

int tlspolicy_key_save(unsigned slot, tlspolicy_key_t *key) {
    char name[3];
    nvs_handle_t handle;
    name_of(slot, name);
    key->form = KEY_FORM;
    esp_err_t err = __real_nvs_open(KEYS_NAMESPACE, NVS_READWRITE, &handle);
    if (err != ESP_OK) {
        return err;
    }
    err = nvs_set_blob(handle, name, key, sizeof(*key));
    if (err == ESP_OK) {
        err = nvs_commit(handle);
    }
    nvs_close(handle);
    return err;
}

int tlspolicy_key_remove(unsigned slot) {
    char name[3];
    nvs_handle_t handle;
    name_of(slot, name);
    esp_err_t err = __real_nvs_open(KEYS_NAMESPACE, NVS_READONLY, &handle);
    if (err == ESP_ERR_NVS_NOT_FOUND) {
        return ESP_OK;
    }
    if (err != ESP_OK) {
        return err;
    }
    nvs_close(handle);
    err = __real_nvs_open(KEYS_NAMESPACE, NVS_READWRITE, &handle);
    if (err != ESP_OK) {
        return err;
    }
    err = nvs_erase_key(handle, name);
    if (err == ESP_OK) {
        err = nvs_commit(handle);
    }
    nvs_close(handle);
    return err == ESP_ERR_NVS_NOT_FOUND ? ESP_OK : err;
}

// As esp32.NVS does: OSError(-code, 'ESP_ERR_...'); a key that is not there is ENOENT.
void tlspolicy_raise_store(int code) {
    if (code == ESP_ERR_NVS_NOT_FOUND) {
        mp_raise_OSError(MP_ENOENT);
    }
    const char *name = esp_err_to_name(code);
    mp_obj_t args[] = { MP_OBJ_NEW_SMALL_INT(-code), mp_obj_new_str(name, strlen(name)) };
    nlr_raise(mp_obj_exception_make_new(&mp_type_OSError, MP_ARRAY_SIZE(args), 0, args));
}

#ifdef ESP_PLATFORM

#include "esp_flash.h"
#include "esp_partition.h"

// micropython.cmake gives MicroPython's esp32_partition.c and modesp.c these in place of ESP-IDF's
// own, by their names, while they are compiled. The NVS library itself is not touched.
esp_err_t tlspolicy_partition_read(const esp_partition_t *p, size_t at, void *to, size_t len);
esp_err_t tlspolicy_partition_write(const esp_partition_t *p, size_t at, const void *from, size_t len);
esp_err_t tlspolicy_partition_erase_range(const esp_partition_t *p, size_t at, size_t len);
esp_err_t tlspolicy_partition_mmap(const esp_partition_t *p, size_t at, size_t len,
    esp_partition_mmap_memory_t memory, const void **to, esp_partition_mmap_handle_t *handle);
esp_err_t tlspolicy_flash_read(esp_flash_t *chip, void *to, uint32_t at, uint32_t len);
esp_err_t tlspolicy_flash_write(esp_flash_t *chip, const void *from, uint32_t at, uint32_t len);
esp_err_t tlspolicy_flash_erase_region(esp_flash_t *chip, uint32_t at, uint32_t len);

static bool holds_keys(const esp_partition_t *p) {
    return p->type == ESP_PARTITION_TYPE_DATA
           && (p->subtype == ESP_PARTITION_SUBTYPE_DATA_NVS
               || p->subtype == ESP_PARTITION_SUBTYPE_DATA_NVS_KEYS);
}

esp_err_t tlspolicy_partition_read(const esp_partition_t *p, size_t at, void *to, size_t len) {
    return holds_keys(p) ? ESP_ERR_NOT_ALLOWED : esp_partition_read(p, at, to, len);
}

esp_err_t tlspolicy_partition_write(const esp_partition_t *p, size_t at, const void *from, size_t len) {
    return holds_keys(p) ? ESP_ERR_NOT_ALLOWED : esp_partition_write(p, at, from, len);
}

esp_err_t tlspolicy_partition_erase_range(const esp_partition_t *p, size_t at, size_t len) {
    return holds_keys(p) ? ESP_ERR_NOT_ALLOWED : esp_partition_erase_range(p, at, len);
}

esp_err_t tlspolicy_partition_mmap(const esp_partition_t *p, size_t at, size_t len,
    esp_partition_mmap_memory_t memory, const void **to, esp_partition_mmap_handle_t *handle) {
    return holds_keys(p) ? ESP_ERR_NOT_ALLOWED
           : esp_partition_mmap(p, at, len, memory, to, handle);
}

// The module `esp` reads and writes the flash by address; the partition table decides where that
// may not be, so nothing of it is open.
esp_err_t tlspolicy_flash_read(esp_flash_t *chip, void *to, uint32_t at, uint32_t len) {
    (void)chip, (void)to, (void)at, (void)len;
    return ESP_ERR_NOT_ALLOWED;
}

esp_err_t tlspolicy_flash_write(esp_flash_t *chip, const void *from, uint32_t at, uint32_t len) {
    (void)chip, (void)from, (void)at, (void)len;
    return ESP_ERR_NOT_ALLOWED;
}

esp_err_t tlspolicy_flash_erase_region(esp_flash_t *chip, uint32_t at, uint32_t len) {
    (void)chip, (void)at, (void)len;
    return ESP_ERR_NOT_ALLOWED;
}

#endif
