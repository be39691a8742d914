// SPDX-License-Identifier: MIT
// network.WLAN: one station, one network in the air, no access point.
//
// Owns the state of the radio; the network's name and key come from --wifi. Looking for a
// network and joining it takes about 50 ms. On a stock board setting the radio up writes the driver's
// own data into NVS (nvs_wifi_init) and fails where there is no room, as on the chip.
// Never moves a packet: sockets are the host's, and refuse to go out while the radio is down.
#include <string.h>

#include "py/mphal.h"
#include "py/runtime.h"
#include "shared/netutils/netutils.h"
#include "extmod/modnetwork.h"

#include "board.h"
#include "board_network.h"
#include "flash.h"
#include "nvs.h"

#define IF_STA (0)
#define IF_AP (1)
#define MODE_STA (1)
#define MODE_AP (2)
#define JOIN_US (50000)
#define STAT_IDLE (1000)
#define STAT_CONNECTING (1001)
#define STAT_GOT_IP (1010)
#define REASON_ASSOC_LEAVE (8)
#define REASON_NO_AP_FOUND (201)
#define REASON_AUTH_FAIL (202)

typedef struct {
    mp_obj_base_t base;
    int number;
} wlan_obj_t;

static const wlan_obj_t wlan_sta = {{&board_wlan_type}, IF_STA};
static const wlan_obj_t wlan_ap = {{&board_wlan_type}, IF_AP};

static bool set_up;
static bool started;
static int mode;
static bool wanted;                // connect() was called, disconnect() was not
static uint64_t join_done_us;
static int reason;                 // why the last attempt failed; 0: it did not
static char ssid[33];
static char key[65];
static int reconnects;
static int pm = 1;
static int protocol = 7;
static uint8_t channel = 1;
static uint8_t own_ip[4];          // set by ifconfig()/ipconfig(), else from the network
static uint8_t dns[4];
static bool own_address;

static const uint8_t given_ip[4] = {10, 0, 2, 15};
static const uint8_t given_mask[4] = {255, 255, 255, 0};
static const uint8_t none[4];

// The attempt in progress is judged when somebody looks.
static bool joined(void) {
    if (!started || !(mode & MODE_STA) || !wanted || board_uptime_us() < join_done_us) {
        return false;
    }
    if (strcmp(ssid, board.wifi_ssid) != 0) {
        reason = REASON_NO_AP_FOUND;
    } else if (board.wifi_key[0] != 0 && strcmp(key, board.wifi_key) != 0) {
        reason = REASON_AUTH_FAIL;
    } else {
        reason = 0;
    }
    return reason == 0;
}

bool board_wifi_up(void) {
    return joined();
}

static __attribute__((noreturn)) void wifi_error(const char *text) {
    mp_raise_msg(&mp_type_OSError, (mp_rom_error_text_t)text);
}

static void require_if(const wlan_obj_t *self, int number) {
    if (self->number != number) {
        wifi_error(number == IF_STA ? "STA required" : "AP required");
    }
}

static mp_obj_t wlan_make_new(const mp_obj_type_t *type, size_t n_args, size_t n_kw, const mp_obj_t *args) {
    (void)type;
    mp_arg_check_num(n_args, n_kw, 0, 1, false);
    if (!set_up) {
        #ifdef OUTPOST_LEG_STOCK
        int error = flash_is_open() ? nvs_wifi_init() : 0;
        #else
        int error = 0;      // CONFIG_ESP_WIFI_NVS_ENABLED=n
        #endif
        if (error != 0) {
            mp_raise_msg_varg(&mp_type_RuntimeError, MP_ERROR_TEXT("Wifi Unknown Error 0x%04x"), error);
        }
        set_up = true;
    }
    mp_int_t number = n_args > 0 ? mp_obj_get_int(args[0]) : IF_STA;
    if (number == IF_STA) {
        return MP_OBJ_FROM_PTR(&wlan_sta);
    }
    if (number == IF_AP) {
        return MP_OBJ_FROM_PTR(&wlan_ap);
    }
    mp_raise_ValueError(MP_ERROR_TEXT("invalid WLAN interface identifier"));
}

static mp_obj_t wlan_active(size_t n_args, const mp_obj_t *args) {
    const wlan_obj_t *self = MP_OBJ_TO_PTR(args[0]);
    int bit = self->number == IF_STA ? MODE_STA : MODE_AP;
    if (n_args > 1) {
        mode = mp_obj_is_true(args[1]) ? (mode | bit) : (mode & ~bit);
        started = mode != 0;
        if (!(mode & MODE_STA)) {
            wanted = false;
            reason = 0;
        }
    }
    return mp_obj_new_bool(mode & bit);
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(wlan_active_obj, 1, 2, wlan_active);

static void copy_text(mp_obj_t from, char *to, size_t room) {
    size_t length;
    const char *text = mp_obj_str_get_data(from, &length);
    length = MIN(length, room - 1);
    memcpy(to, text, length);
    to[length] = 0;
}

static mp_obj_t wlan_connect(size_t n_args, const mp_obj_t *pos_args, mp_map_t *kw_args) {
    enum { ARG_ssid, ARG_key, ARG_bssid };
    static const mp_arg_t allowed[] = {
        { MP_QSTR_, MP_ARG_OBJ, {.u_rom_obj = MP_ROM_NONE} },
        { MP_QSTR_, MP_ARG_OBJ, {.u_rom_obj = MP_ROM_NONE} },
        { MP_QSTR_bssid, MP_ARG_KW_ONLY | MP_ARG_OBJ, {.u_rom_obj = MP_ROM_NONE} },
    };
    mp_arg_val_t args[MP_ARRAY_SIZE(allowed)];
    mp_arg_parse_all(n_args - 1, pos_args + 1, kw_args, MP_ARRAY_SIZE(allowed), allowed, args);
    if (n_args > 1) {
        if (!(mode & MODE_STA)) {
            wifi_error("Wifi Invalid Mode");
        }
        ssid[0] = 0;
        key[0] = 0;
        if (args[ARG_ssid].u_obj != mp_const_none) {
            copy_text(args[ARG_ssid].u_obj, ssid, sizeof(ssid));
        }
        if (args[ARG_key].u_obj != mp_const_none) {
            copy_text(args[ARG_key].u_obj, key, sizeof(key));
        }
        if (args[ARG_bssid].u_obj != mp_const_none) {
            size_t length;
            mp_obj_str_get_data(args[ARG_bssid].u_obj, &length);
            if (length != 6) {
                mp_raise_ValueError(NULL);
            }
        }
    }
    if (!started) {
        wifi_error("Wifi Not Started");
    }
    wanted = true;
    reason = 0;
    join_done_us = board_uptime_us() + JOIN_US;
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_KW(wlan_connect_obj, 1, wlan_connect);

static mp_obj_t wlan_disconnect(mp_obj_t self_in) {
    (void)self_in;
    if (!started) {
        wifi_error("Wifi Not Started");
    }
    wanted = false;
    reason = REASON_ASSOC_LEAVE;
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_1(wlan_disconnect_obj, wlan_disconnect);

static mp_obj_t wlan_status(size_t n_args, const mp_obj_t *args) {
    const wlan_obj_t *self = MP_OBJ_TO_PTR(args[0]);
    if (n_args == 1) {
        if (self->number != IF_STA) {
            return mp_const_none;
        }
        int status = STAT_IDLE;
        if (joined()) {
            status = STAT_GOT_IP;
        } else if (reason == REASON_NO_AP_FOUND || reason == REASON_AUTH_FAIL) {
            status = reason;
        } else if (wanted) {
            status = STAT_CONNECTING;
        }
        return MP_OBJ_NEW_SMALL_INT(status);
    }
    switch (mp_obj_str_get_qstr(args[1])) {
        case MP_QSTR_stations:
            require_if(self, IF_AP);
            return mp_obj_new_list(0, NULL);
        case MP_QSTR_rssi:
            require_if(self, IF_STA);
            if (!joined()) {
                wifi_error("Wifi Not Connected");
            }
            return MP_OBJ_NEW_SMALL_INT(-40);
        default:
            mp_raise_ValueError(MP_ERROR_TEXT("unknown status param"));
    }
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(wlan_status_obj, 1, 2, wlan_status);

static mp_obj_t wlan_scan(mp_obj_t self_in) {
    (void)self_in;
    if (!(mode & MODE_STA)) {
        wifi_error("STA must be active");
    }
    static const uint8_t bssid[6] = {0x02, 0x00, 0x00, 0x00, 0x00, 0x01};
    mp_obj_t items[6] = {
        mp_obj_new_bytes((const byte *)board.wifi_ssid, strlen(board.wifi_ssid)),
        mp_obj_new_bytes(bssid, sizeof(bssid)),
        MP_OBJ_NEW_SMALL_INT(channel),
        MP_OBJ_NEW_SMALL_INT(-40),
        MP_OBJ_NEW_SMALL_INT(board.wifi_key[0] != 0 ? 3 : 0),
        mp_const_false,
    };
    mp_obj_t found = mp_obj_new_tuple(6, items);
    return mp_obj_new_list(1, &found);
}
static MP_DEFINE_CONST_FUN_OBJ_1(wlan_scan_obj, wlan_scan);

static mp_obj_t wlan_isconnected(mp_obj_t self_in) {
    const wlan_obj_t *self = MP_OBJ_TO_PTR(self_in);
    return mp_obj_new_bool(self->number == IF_STA && joined());
}
static MP_DEFINE_CONST_FUN_OBJ_1(wlan_isconnected_obj, wlan_isconnected);

static mp_obj_t address(const uint8_t *ip) {
    return netutils_format_ipv4_addr((uint8_t *)ip, NETUTILS_BIG);
}

static const uint8_t *current_ip(const wlan_obj_t *self) {
    if (self->number == IF_STA && joined()) {
        return own_address ? own_ip : given_ip;
    }
    return none;
}

static mp_obj_t wlan_ifconfig(size_t n_args, const mp_obj_t *args) {
    const wlan_obj_t *self = MP_OBJ_TO_PTR(args[0]);
    if (n_args == 1) {
        const uint8_t *ip = current_ip(self);
        mp_obj_t items[4] = {
            address(ip), address(ip == none ? none : given_mask), address(none), address(dns),
        };
        return mp_obj_new_tuple(4, items);
    }
    if (mp_obj_is_type(args[1], &mp_type_tuple) || mp_obj_is_type(args[1], &mp_type_list)) {
        mp_obj_t *items;
        mp_obj_get_array_fixed_n(args[1], 4, &items);
        netutils_parse_ipv4_addr(items[0], own_ip, NETUTILS_BIG);
        netutils_parse_ipv4_addr(items[3], dns, NETUTILS_BIG);
        own_address = true;
    } else if (self->number != IF_STA || strcmp(mp_obj_str_get_str(args[1]), "dhcp") != 0) {
        mp_raise_ValueError(MP_ERROR_TEXT("invalid arguments"));
    } else {
        own_address = false;
    }
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(wlan_ifconfig_obj, 1, 2, wlan_ifconfig);

static mp_obj_t wlan_ipconfig(size_t n_args, const mp_obj_t *args, mp_map_t *kwargs) {
    const wlan_obj_t *self = MP_OBJ_TO_PTR(args[0]);
    if (kwargs->used != 0) {
        mp_raise_ValueError(MP_ERROR_TEXT("unexpected key"));
    }
    if (n_args != 2) {
        mp_raise_TypeError(MP_ERROR_TEXT("must query one param"));
    }
    const uint8_t *ip = current_ip(self);
    switch (mp_obj_str_get_qstr(args[1])) {
        case MP_QSTR_dhcp4:
            return mp_obj_new_bool(!own_address);
        case MP_QSTR_addr4: {
            mp_obj_t items[2] = {address(ip), address(ip == none ? none : given_mask)};
            return mp_obj_new_tuple(2, items);
        }
        case MP_QSTR_gw4:
            return address(none);
        default:
            mp_raise_ValueError(MP_ERROR_TEXT("unexpected key"));
    }
}
static MP_DEFINE_CONST_FUN_OBJ_KW(wlan_ipconfig_obj, 1, wlan_ipconfig);

static void config_set(const wlan_obj_t *self, qstr name, mp_obj_t value) {
    switch (name) {
        case MP_QSTR_mac: {
            mp_buffer_info_t data;
            mp_get_buffer_raise(value, &data, MP_BUFFER_READ);
            if (data.len != 6) {
                mp_raise_ValueError(MP_ERROR_TEXT("invalid buffer length"));
            }
            break;
        }
        case MP_QSTR_hostname:
        case MP_QSTR_dhcp_hostname:
            mod_network_hostname(1, &value);
            break;
        case MP_QSTR_reconnects:
            require_if(self, IF_STA);
            reconnects = mp_obj_get_int(value) == -1 ? 0 : (int)mp_obj_get_int(value) + 1;
            break;
        case MP_QSTR_pm:
            pm = (int)mp_obj_get_int(value);
            break;
        case MP_QSTR_protocol:
            protocol = (int)mp_obj_get_int(value);
            break;
        case MP_QSTR_txpower:
            (void)mp_obj_get_float(value);
            break;
        case MP_QSTR_channel:
            channel = (uint8_t)mp_obj_get_int(value);
            break;
        case MP_QSTR_ssid:
        case MP_QSTR_essid:
        case MP_QSTR_key:
        case MP_QSTR_password:
        case MP_QSTR_security:
        case MP_QSTR_authmode:
        case MP_QSTR_hidden:
        case MP_QSTR_max_clients:
            require_if(self, IF_AP);
            break;
        default:
            mp_raise_ValueError(MP_ERROR_TEXT("unknown config param"));
    }
}

static mp_obj_t wlan_config(size_t n_args, const mp_obj_t *args, mp_map_t *kwargs) {
    const wlan_obj_t *self = MP_OBJ_TO_PTR(args[0]);
    if (n_args != 1 && kwargs->used != 0) {
        mp_raise_TypeError(MP_ERROR_TEXT("either pos or kw args are allowed"));
    }
    if (kwargs->used != 0) {
        for (size_t i = 0; i < kwargs->alloc; i++) {
            if (mp_map_slot_is_filled(kwargs, i)) {
                config_set(self, mp_obj_str_get_qstr(kwargs->table[i].key), kwargs->table[i].value);
            }
        }
        return mp_const_none;
    }
    if (n_args != 2) {
        mp_raise_TypeError(MP_ERROR_TEXT("can query only one param"));
    }
    switch (mp_obj_str_get_qstr(args[1])) {
        case MP_QSTR_mac: {
            uint8_t mac[6];
            memcpy(mac, board.mac, sizeof(mac));
            mac[5] = (uint8_t)(mac[5] + self->number);
            return mp_obj_new_bytes(mac, sizeof(mac));
        }
        case MP_QSTR_ssid:
        case MP_QSTR_essid:
            return mp_obj_new_str_from_cstr(self->number == IF_STA ? ssid : "");
        case MP_QSTR_hostname:
        case MP_QSTR_dhcp_hostname:
            require_if(self, IF_STA);
            return mod_network_hostname(0, NULL);
        case MP_QSTR_reconnects:
            require_if(self, IF_STA);
            return MP_OBJ_NEW_SMALL_INT(reconnects - 1);
        case MP_QSTR_channel:
            return MP_OBJ_NEW_SMALL_INT(channel);
        case MP_QSTR_pm:
            return MP_OBJ_NEW_SMALL_INT(pm);
        case MP_QSTR_protocol:
            return MP_OBJ_NEW_SMALL_INT(protocol);
        case MP_QSTR_txpower:
            return mp_obj_new_float(MICROPY_FLOAT_CONST(20.0));
        default:
            mp_raise_ValueError(MP_ERROR_TEXT("unknown config param"));
    }
}
static MP_DEFINE_CONST_FUN_OBJ_KW(wlan_config_obj, 1, wlan_config);

static const mp_rom_map_elem_t wlan_locals_table[] = {
    { MP_ROM_QSTR(MP_QSTR_active), MP_ROM_PTR(&wlan_active_obj) },
    { MP_ROM_QSTR(MP_QSTR_connect), MP_ROM_PTR(&wlan_connect_obj) },
    { MP_ROM_QSTR(MP_QSTR_disconnect), MP_ROM_PTR(&wlan_disconnect_obj) },
    { MP_ROM_QSTR(MP_QSTR_status), MP_ROM_PTR(&wlan_status_obj) },
    { MP_ROM_QSTR(MP_QSTR_scan), MP_ROM_PTR(&wlan_scan_obj) },
    { MP_ROM_QSTR(MP_QSTR_isconnected), MP_ROM_PTR(&wlan_isconnected_obj) },
    { MP_ROM_QSTR(MP_QSTR_config), MP_ROM_PTR(&wlan_config_obj) },
    { MP_ROM_QSTR(MP_QSTR_ifconfig), MP_ROM_PTR(&wlan_ifconfig_obj) },
    { MP_ROM_QSTR(MP_QSTR_ipconfig), MP_ROM_PTR(&wlan_ipconfig_obj) },
    { MP_ROM_QSTR(MP_QSTR_IF_STA), MP_ROM_INT(IF_STA) },
    { MP_ROM_QSTR(MP_QSTR_IF_AP), MP_ROM_INT(IF_AP) },
    { MP_ROM_QSTR(MP_QSTR_SEC_OPEN), MP_ROM_INT(0) },
    { MP_ROM_QSTR(MP_QSTR_SEC_WPA), MP_ROM_INT(2) },
    { MP_ROM_QSTR(MP_QSTR_SEC_WPA2), MP_ROM_INT(3) },
    { MP_ROM_QSTR(MP_QSTR_SEC_WPA_WPA2), MP_ROM_INT(4) },
    { MP_ROM_QSTR(MP_QSTR_SEC_WPA3), MP_ROM_INT(6) },
    { MP_ROM_QSTR(MP_QSTR_SEC_WPA2_WPA3), MP_ROM_INT(7) },
    { MP_ROM_QSTR(MP_QSTR_PM_NONE), MP_ROM_INT(0) },
    { MP_ROM_QSTR(MP_QSTR_PM_PERFORMANCE), MP_ROM_INT(1) },
    { MP_ROM_QSTR(MP_QSTR_PM_POWERSAVE), MP_ROM_INT(2) },
};
static MP_DEFINE_CONST_DICT(wlan_locals, wlan_locals_table);

MP_DEFINE_CONST_OBJ_TYPE(
    board_wlan_type,
    MP_QSTR_WLAN,
    MP_TYPE_FLAG_NONE,
    make_new, wlan_make_new,
    locals_dict, &wlan_locals
    );

// ---------------------------------------------------------------- the module's own functions

static mp_obj_t network_init(void) {
    return mp_const_none;
}
MP_DEFINE_CONST_FUN_OBJ_0(board_network_init_obj, network_init);

static mp_obj_t network_ipconfig(size_t n_args, const mp_obj_t *args, mp_map_t *kwargs) {
    if (kwargs->used == 0) {
        if (n_args != 1) {
            mp_raise_TypeError(MP_ERROR_TEXT("must query one param"));
        }
        if (mp_obj_str_get_qstr(args[0]) != MP_QSTR_dns) {
            mp_raise_ValueError(MP_ERROR_TEXT("unexpected key"));
        }
        return address(dns);
    }
    if (n_args != 0) {
        mp_raise_TypeError(MP_ERROR_TEXT("can't specify pos and kw args"));
    }
    mp_map_elem_t *given = mp_map_lookup(kwargs, MP_OBJ_NEW_QSTR(MP_QSTR_dns), MP_MAP_LOOKUP);
    if (given == NULL || kwargs->used != 1) {
        mp_raise_ValueError(MP_ERROR_TEXT("unexpected key"));
    }
    netutils_parse_ipv4_addr(given->value, dns, NETUTILS_BIG);
    return mp_const_none;
}
MP_DEFINE_CONST_FUN_OBJ_KW(board_network_ipconfig_obj, 0, network_ipconfig);

static mp_obj_t network_phy_mode(size_t n_args, const mp_obj_t *args) {
    if (n_args == 0) {
        return MP_OBJ_NEW_SMALL_INT(protocol);
    }
    protocol = (int)mp_obj_get_int(args[0]);
    return mp_const_none;
}
MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(board_network_phy_mode_obj, 0, 1, network_phy_mode);
