// SPDX-License-Identifier: MIT
// The `esp32` module of the virtual board: NVS, Partition and idf_heap_info, over flash.c and
// nvs.c, answering as MicroPython on an ESP32 does, errors included.
//
// Owns nothing in flash itself. Never offers what a board has not: no RMT, no ULP, no pins.
#include <string.h>

#include "py/mperrno.h"
#include "py/mphal.h"
#include "py/objstr.h"
#include "py/runtime.h"
#include "extmod/vfs.h"

#include "board.h"
#include "flash.h"
#include "nvs.h"

// What a stock board has free of ESP-IDF's heap after boot; the C heap is counted against it.
#define IDF_HEAP_BYTES (95 * 1024)
#define HEAP_EXEC 1
#define HEAP_DATA 4

// OSError(-code, 'ESP_ERR_...'); the few codes that have a POSIX name carry that number instead.
static void check(int code) {
    if (code == BOARD_OK) {
        return;
    }
    mp_int_t number = -code;
    if (code == BOARD_ERR_NO_MEM) {
        number = MP_ENOMEM;
    } else if (code == BOARD_ERR_TIMEOUT) {
        number = MP_ETIMEDOUT;
    } else if (code == BOARD_ERR_NOT_SUPPORTED) {
        number = MP_EOPNOTSUPP;
    }
    const char *name = board_err_name(code);
    mp_obj_t args[2] = { MP_OBJ_NEW_SMALL_INT(number), mp_obj_new_str(name, strlen(name)) };
    nlr_raise(mp_obj_exception_make_new(&mp_type_OSError, 2, 0, args));
}

// ---- NVS

typedef struct {
    mp_obj_base_t base;
    nvs_handle_t handle;
} nvs_obj_t;

static nvs_handle_t handle_of(mp_obj_t self) {
    return ((nvs_obj_t *)MP_OBJ_TO_PTR(self))->handle;
}

static void nvs_obj_print(const mp_print_t *print, mp_obj_t self, mp_print_kind_t kind) {
    (void)self;
    (void)kind;
    mp_printf(print, "<NVS namespace>");
}

static mp_obj_t nvs_obj_make_new(const mp_obj_type_t *type, size_t n_args, size_t n_kw,
    const mp_obj_t *args) {
    mp_arg_check_num(n_args, n_kw, 1, 1, false);
    nvs_handle_t handle;
    check(nvs_open(mp_obj_str_get_str(args[0]), NVS_READWRITE, &handle));
    nvs_obj_t *self = mp_obj_malloc(nvs_obj_t, type);
    self->handle = handle;
    return MP_OBJ_FROM_PTR(self);
}

static mp_obj_t nvs_obj_set_i32(mp_obj_t self, mp_obj_t key, mp_obj_t value_in) {
    const char *name = mp_obj_str_get_str(key);
    mp_int_t value = mp_obj_get_int(value_in);
    if (value != (mp_int_t)(int32_t)value) {
        // A machine word has 32 bits on the board, whatever it has here.
        mp_raise_msg(&mp_type_OverflowError,
            MP_ERROR_TEXT("overflow converting long int to machine word"));
    }
    check(nvs_set_i32(handle_of(self), name, (int32_t)value));
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_3(nvs_obj_set_i32_obj, nvs_obj_set_i32);

static mp_obj_t nvs_obj_get_i32(mp_obj_t self, mp_obj_t key) {
    int32_t value = 0;
    check(nvs_get_i32(handle_of(self), mp_obj_str_get_str(key), &value));
    return mp_obj_new_int(value);
}
static MP_DEFINE_CONST_FUN_OBJ_2(nvs_obj_get_i32_obj, nvs_obj_get_i32);

static mp_obj_t nvs_obj_set_blob(mp_obj_t self, mp_obj_t key, mp_obj_t value_in) {
    const char *name = mp_obj_str_get_str(key);
    mp_buffer_info_t value;
    mp_get_buffer_raise(value_in, &value, MP_BUFFER_READ);
    check(nvs_set_blob(handle_of(self), name, value.buf, value.len));
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_3(nvs_obj_set_blob_obj, nvs_obj_set_blob);

static mp_obj_t nvs_obj_get_blob(mp_obj_t self, mp_obj_t key, mp_obj_t room_in) {
    const char *name = mp_obj_str_get_str(key);
    mp_buffer_info_t room;
    mp_get_buffer_raise(room_in, &room, MP_BUFFER_WRITE);
    uint8_t none;
    size_t length = room.len;
    check(nvs_get_blob(handle_of(self), name, room.buf != NULL ? room.buf : &none, &length));
    return MP_OBJ_NEW_SMALL_INT(length);
}
static MP_DEFINE_CONST_FUN_OBJ_3(nvs_obj_get_blob_obj, nvs_obj_get_blob);

static mp_obj_t nvs_obj_erase_key(mp_obj_t self, mp_obj_t key) {
    check(nvs_erase_key(handle_of(self), mp_obj_str_get_str(key)));
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_2(nvs_obj_erase_key_obj, nvs_obj_erase_key);

static mp_obj_t nvs_obj_commit(mp_obj_t self) {
    check(nvs_commit(handle_of(self)));
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_1(nvs_obj_commit_obj, nvs_obj_commit);

static const mp_rom_map_elem_t nvs_locals_table[] = {
    { MP_ROM_QSTR(MP_QSTR_get_i32), MP_ROM_PTR(&nvs_obj_get_i32_obj) },
    { MP_ROM_QSTR(MP_QSTR_set_i32), MP_ROM_PTR(&nvs_obj_set_i32_obj) },
    { MP_ROM_QSTR(MP_QSTR_get_blob), MP_ROM_PTR(&nvs_obj_get_blob_obj) },
    { MP_ROM_QSTR(MP_QSTR_set_blob), MP_ROM_PTR(&nvs_obj_set_blob_obj) },
    { MP_ROM_QSTR(MP_QSTR_erase_key), MP_ROM_PTR(&nvs_obj_erase_key_obj) },
    { MP_ROM_QSTR(MP_QSTR_commit), MP_ROM_PTR(&nvs_obj_commit_obj) },
};
static MP_DEFINE_CONST_DICT(nvs_locals, nvs_locals_table);

static MP_DEFINE_CONST_OBJ_TYPE(
    nvs_type, MP_QSTR_NVS, MP_TYPE_FLAG_NONE,
    make_new, nvs_obj_make_new,
    print, nvs_obj_print,
    locals_dict, &nvs_locals
    );

// ---- Partition

enum { PARTITION_BOOT = 0, PARTITION_RUNNING = 1 };

typedef struct {
    mp_obj_base_t base;
    const flash_partition_t *part;
    uint8_t *cache;             // a sector, where blocks are smaller than one
    uint16_t block_size;
} partition_obj_t;

static const mp_obj_type_t partition_type;

static mp_obj_t partition_new(const flash_partition_t *part, uint16_t block_size) {
    if (part == NULL) {
        mp_raise_OSError(MP_ENOENT);
    }
    if (block_size == 0) {
        // A stock board divides by it, and panics.
        mp_raise_ValueError(MP_ERROR_TEXT("block size"));
    }
    partition_obj_t *self = mp_obj_malloc(partition_obj_t, &partition_type);
    self->part = part;
    self->block_size = block_size;
    self->cache = block_size < FLASH_SECTOR_SIZE ? m_new(uint8_t, FLASH_SECTOR_SIZE) : NULL;
    return MP_OBJ_FROM_PTR(self);
}

static void partition_print(const mp_print_t *print, mp_obj_t self_in, mp_print_kind_t kind) {
    (void)kind;
    const flash_partition_t *p = ((partition_obj_t *)MP_OBJ_TO_PTR(self_in))->part;
    mp_printf(print, "<Partition type=%u, subtype=%u, address=%u, size=%u, label=%s, encrypted=%u>",
        p->type, p->subtype, (unsigned)p->offset, (unsigned)p->size, p->label, p->encrypted);
}

static mp_obj_t partition_make_new(const mp_obj_type_t *type, size_t n_args, size_t n_kw,
    const mp_obj_t *args) {
    (void)type;
    mp_arg_check_num(n_args, n_kw, 1, 2, false);
    const flash_partition_t *part;
    if (mp_obj_is_int(args[0])) {
        switch (mp_obj_get_int(args[0])) {
            case PARTITION_BOOT:
                part = flash_boot_partition();
                break;
            case PARTITION_RUNNING:
                part = flash_running_partition();
                break;
            default:
                mp_raise_ValueError(NULL);
        }
    } else {
        const char *label = mp_obj_str_get_str(args[0]);
        part = flash_partition_find(FLASH_TYPE_APP, FLASH_SUBTYPE_ANY, label);
        if (part == NULL) {
            part = flash_partition_find(FLASH_TYPE_DATA, FLASH_SUBTYPE_ANY, label);
        }
    }
    mp_int_t block_size = n_args == 2 ? mp_obj_get_int(args[1]) : (mp_int_t)FLASH_SECTOR_SIZE;
    return partition_new(part, (uint16_t)block_size);
}

static mp_obj_t partition_find(size_t n_args, const mp_obj_t *pos_args, mp_map_t *kw_args) {
    enum { ARG_type, ARG_subtype, ARG_label, ARG_block_size };
    static const mp_arg_t allowed[] = {
        { MP_QSTR_type, MP_ARG_INT, {.u_int = FLASH_TYPE_APP} },
        { MP_QSTR_subtype, MP_ARG_INT, {.u_int = FLASH_SUBTYPE_ANY} },
        { MP_QSTR_label, MP_ARG_OBJ, {.u_rom_obj = MP_ROM_NONE} },
        { MP_QSTR_block_size, MP_ARG_INT, {.u_int = FLASH_SECTOR_SIZE} },
    };
    mp_arg_val_t args[MP_ARRAY_SIZE(allowed)];
    mp_arg_parse_all(n_args, pos_args, kw_args, MP_ARRAY_SIZE(allowed), allowed, args);
    const char *label = args[ARG_label].u_obj == mp_const_none ? NULL
        : mp_obj_str_get_str(args[ARG_label].u_obj);
    mp_obj_t list = mp_obj_new_list(0, NULL);
    const flash_partition_t *table;
    int count = flash_partitions(&table);
    for (int i = 0; i < count; i++) {
        const flash_partition_t *p = &table[i];
        if ((args[ARG_type].u_int == FLASH_TYPE_ANY || args[ARG_type].u_int == p->type)
            && (args[ARG_subtype].u_int == FLASH_SUBTYPE_ANY || args[ARG_subtype].u_int == p->subtype)
            && (label == NULL || strcmp(label, p->label) == 0)) {
            mp_obj_list_append(list, partition_new(p, (uint16_t)args[ARG_block_size].u_int));
        }
    }
    return list;
}
static MP_DEFINE_CONST_FUN_OBJ_KW(partition_find_fun, 0, partition_find);
static MP_DEFINE_CONST_STATICMETHOD_OBJ(partition_find_obj, MP_ROM_PTR(&partition_find_fun));

static mp_obj_t partition_info(mp_obj_t self_in) {
    const flash_partition_t *p = ((partition_obj_t *)MP_OBJ_TO_PTR(self_in))->part;
    mp_obj_t items[] = {
        MP_OBJ_NEW_SMALL_INT(p->type),
        MP_OBJ_NEW_SMALL_INT(p->subtype),
        mp_obj_new_int_from_uint(p->offset),
        mp_obj_new_int_from_uint(p->size),
        mp_obj_new_str(p->label, strlen(p->label)),
        mp_obj_new_bool(p->encrypted),
    };
    return mp_obj_new_tuple(MP_ARRAY_SIZE(items), items);
}
static MP_DEFINE_CONST_FUN_OBJ_1(partition_info_obj, partition_info);

// In our firmware the NVS (and the partition of its keys) cannot be reached past esp32.NVS: the
// private keys of tlspolicy lie there. On a board tlspolicy does this (tlspolicy_store.c).
static void check_open(const partition_obj_t *self) {
    #ifndef OUTPOST_LEG_STOCK
    if (self->part->type == FLASH_TYPE_DATA && (self->part->subtype == FLASH_SUBTYPE_NVS
                                                || self->part->subtype == FLASH_SUBTYPE_NVS_KEYS)) {
        check(BOARD_ERR_NOT_ALLOWED);
    }
    #else
    (void)self;
    #endif
}

static mp_obj_t partition_readblocks(size_t n_args, const mp_obj_t *args) {
    partition_obj_t *self = MP_OBJ_TO_PTR(args[0]);
    check_open(self);
    uint32_t offset = (uint32_t)mp_obj_get_int(args[1]) * self->block_size;
    mp_buffer_info_t room;
    mp_get_buffer_raise(args[2], &room, MP_BUFFER_WRITE);
    if (n_args == 4) {
        offset += (uint32_t)mp_obj_get_int(args[3]);
    }
    check(flash_partition_read(self->part, offset, room.buf, room.len));
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(partition_readblocks_obj, 3, 4, partition_readblocks);

// Makes room for len bytes at offset where a block is less than a sector: what stands beside
// them in the sector is read, and written back after the erase.
static void erase_around(partition_obj_t *self, uint32_t offset, size_t len) {
    uint32_t end = offset + (uint32_t)len;
    uint32_t sector = offset - offset % FLASH_SECTOR_SIZE;
    for (; sector < end; sector += FLASH_SECTOR_SIZE) {
        uint32_t before = sector < offset ? offset - sector : 0;
        uint32_t after = end < sector + FLASH_SECTOR_SIZE ? end - sector : FLASH_SECTOR_SIZE;
        if (before > 0 || after < FLASH_SECTOR_SIZE) {
            check(flash_partition_read(self->part, sector, self->cache, FLASH_SECTOR_SIZE));
        }
        check(flash_partition_erase(self->part, sector, FLASH_SECTOR_SIZE));
        if (before > 0) {
            check(flash_partition_write(self->part, sector, self->cache, before));
        }
        if (after < FLASH_SECTOR_SIZE) {
            check(flash_partition_write(self->part, sector + after, self->cache + after,
                FLASH_SECTOR_SIZE - after));
        }
    }
}

static mp_obj_t partition_writeblocks(size_t n_args, const mp_obj_t *args) {
    partition_obj_t *self = MP_OBJ_TO_PTR(args[0]);
    check_open(self);
    uint32_t offset = (uint32_t)mp_obj_get_int(args[1]) * self->block_size;
    mp_buffer_info_t data;
    mp_get_buffer_raise(args[2], &data, MP_BUFFER_READ);
    if (n_args == 4) {
        offset += (uint32_t)mp_obj_get_int(args[3]);    // no erase: bits are only cleared
    } else if (self->block_size < FLASH_SECTOR_SIZE) {
        erase_around(self, offset, data.len);
    } else {
        check(flash_partition_erase(self->part, offset, data.len));
    }
    check(flash_partition_write(self->part, offset, data.buf, data.len));
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(partition_writeblocks_obj, 3, 4, partition_writeblocks);

static mp_obj_t partition_ioctl(mp_obj_t self_in, mp_obj_t cmd, mp_obj_t arg) {
    partition_obj_t *self = MP_OBJ_TO_PTR(self_in);
    switch (mp_obj_get_int(cmd)) {
        case MP_BLOCKDEV_IOCTL_INIT:
        case MP_BLOCKDEV_IOCTL_DEINIT:
        case MP_BLOCKDEV_IOCTL_SYNC:
            return MP_OBJ_NEW_SMALL_INT(0);
        case MP_BLOCKDEV_IOCTL_BLOCK_COUNT:
            return MP_OBJ_NEW_SMALL_INT(self->part->size / self->block_size);
        case MP_BLOCKDEV_IOCTL_BLOCK_SIZE:
            return MP_OBJ_NEW_SMALL_INT(self->block_size);
        case MP_BLOCKDEV_IOCTL_BLOCK_ERASE:
            if (self->block_size != FLASH_SECTOR_SIZE) {
                return MP_OBJ_NEW_SMALL_INT(-MP_EINVAL);
            }
            check_open(self);
            check(flash_partition_erase(self->part,
                (uint32_t)mp_obj_get_int(arg) * FLASH_SECTOR_SIZE, FLASH_SECTOR_SIZE));
            return MP_OBJ_NEW_SMALL_INT(0);
        default:
            return mp_const_none;
    }
}
static MP_DEFINE_CONST_FUN_OBJ_3(partition_ioctl_obj, partition_ioctl);

static mp_obj_t partition_set_boot(mp_obj_t self_in) {
    check(flash_set_boot_partition(((partition_obj_t *)MP_OBJ_TO_PTR(self_in))->part));
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_1(partition_set_boot_obj, partition_set_boot);

static mp_obj_t partition_get_next_update(mp_obj_t self_in) {
    const flash_partition_t *from = ((partition_obj_t *)MP_OBJ_TO_PTR(self_in))->part;
    return partition_new(flash_next_update_partition(from), FLASH_SECTOR_SIZE);
}
static MP_DEFINE_CONST_FUN_OBJ_1(partition_get_next_update_obj, partition_get_next_update);

static mp_obj_t partition_mark_app_valid(mp_obj_t cls) {
    (void)cls;
    check(flash_mark_app_valid());
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_1(partition_mark_app_valid_fun, partition_mark_app_valid);
static MP_DEFINE_CONST_CLASSMETHOD_OBJ(partition_mark_app_valid_obj,
    MP_ROM_PTR(&partition_mark_app_valid_fun));

static const mp_rom_map_elem_t partition_locals_table[] = {
    { MP_ROM_QSTR(MP_QSTR_find), MP_ROM_PTR(&partition_find_obj) },
    { MP_ROM_QSTR(MP_QSTR_info), MP_ROM_PTR(&partition_info_obj) },
    { MP_ROM_QSTR(MP_QSTR_readblocks), MP_ROM_PTR(&partition_readblocks_obj) },
    { MP_ROM_QSTR(MP_QSTR_writeblocks), MP_ROM_PTR(&partition_writeblocks_obj) },
    { MP_ROM_QSTR(MP_QSTR_ioctl), MP_ROM_PTR(&partition_ioctl_obj) },
    { MP_ROM_QSTR(MP_QSTR_set_boot), MP_ROM_PTR(&partition_set_boot_obj) },
    { MP_ROM_QSTR(MP_QSTR_mark_app_valid_cancel_rollback), MP_ROM_PTR(&partition_mark_app_valid_obj) },
    { MP_ROM_QSTR(MP_QSTR_get_next_update), MP_ROM_PTR(&partition_get_next_update_obj) },
    { MP_ROM_QSTR(MP_QSTR_BOOT), MP_ROM_INT(PARTITION_BOOT) },
    { MP_ROM_QSTR(MP_QSTR_RUNNING), MP_ROM_INT(PARTITION_RUNNING) },
    { MP_ROM_QSTR(MP_QSTR_TYPE_APP), MP_ROM_INT(FLASH_TYPE_APP) },
    { MP_ROM_QSTR(MP_QSTR_TYPE_DATA), MP_ROM_INT(FLASH_TYPE_DATA) },
};
static MP_DEFINE_CONST_DICT(partition_locals, partition_locals_table);

static MP_DEFINE_CONST_OBJ_TYPE(
    partition_type, MP_QSTR_Partition, MP_TYPE_FLAG_NONE,
    make_new, partition_make_new,
    print, partition_print,
    locals_dict, &partition_locals
    );

// ---- the module

// A list of (bytes in all, free, largest piece, least ever free), one for each region.
static mp_obj_t esp32_idf_heap_info(mp_obj_t capabilities) {
    mp_obj_t list = mp_obj_new_list(0, NULL);
    if ((mp_obj_get_int(capabilities) & HEAP_DATA) != 0) {
        size_t now, peak;
        board_cheap_counts(&now, &peak);
        size_t left = now < IDF_HEAP_BYTES ? IDF_HEAP_BYTES - now : 0;
        size_t least = peak < IDF_HEAP_BYTES ? IDF_HEAP_BYTES - peak : 0;
        mp_obj_t region[] = {
            mp_obj_new_int_from_uint(IDF_HEAP_BYTES),
            mp_obj_new_int_from_uint(left),
            mp_obj_new_int_from_uint(left),
            mp_obj_new_int_from_uint(least),
        };
        mp_obj_list_append(list, mp_obj_new_tuple(MP_ARRAY_SIZE(region), region));
    }
    return list;
}
static MP_DEFINE_CONST_FUN_OBJ_1(esp32_idf_heap_info_obj, esp32_idf_heap_info);

static const mp_rom_map_elem_t esp32_globals_table[] = {
    { MP_ROM_QSTR(MP_QSTR___name__), MP_ROM_QSTR(MP_QSTR_esp32) },
    { MP_ROM_QSTR(MP_QSTR_NVS), MP_ROM_PTR(&nvs_type) },
    { MP_ROM_QSTR(MP_QSTR_Partition), MP_ROM_PTR(&partition_type) },
    { MP_ROM_QSTR(MP_QSTR_idf_heap_info), MP_ROM_PTR(&esp32_idf_heap_info_obj) },
    { MP_ROM_QSTR(MP_QSTR_HEAP_DATA), MP_ROM_INT(HEAP_DATA) },
    { MP_ROM_QSTR(MP_QSTR_HEAP_EXEC), MP_ROM_INT(HEAP_EXEC) },
};
static MP_DEFINE_CONST_DICT(esp32_globals, esp32_globals_table);

const mp_obj_module_t mp_module_esp32 = {
    .base = { &mp_type_module },
    .globals = (mp_obj_dict_t *)&esp32_globals,
};
MP_REGISTER_MODULE(MP_QSTR_esp32, mp_module_esp32);
