// SPDX-License-Identifier: MIT
// What the radio's driver keeps in the NVS when it is set up.
//
// Owns the namespace nvs.net80211. Never changes what is there already.
#include "flash.h"
#include "nvs_store.h"

#include <string.h>

int nvs_wifi_init(void) {
    static const struct {
        const char *key;
        uint16_t len;           // 0: one byte
        uint8_t value;
    } settings[] = {
        { "opmode", 0, 2 }, { "country", 12, 0 }, { "sta.ssid", 36, 0xff }, { "sta.authmode", 0, 1 },
        { "sta.pswd", 65, 0xff }, { "sta.pmk", 32, 0xff }, { "sta.chan", 0, 0 },
        { "auto.conn", 0, 0 }, { "bssid.set", 0, 0 }, { "sta.bssid", 6, 0xff },
        { "sta.phym", 0, 7 }, { "sta.phybw", 0, 2 }, { "sta.apsw", 2, 0xff },
        { "sta.scan_method", 0, 0 }, { "sta.sort_method", 0, 0 }, { "sta.minrssi", 0, 0x81 },
        { "ap.ssid", 36, 0xff }, { "ap.authmode", 0, 0 }, { "ap.passwd", 65, 0xff },
        { "ap.chan", 0, 1 }, { "ap.hidden", 0, 0 }, { "ap.max.conn", 0, 4 },
        { "bcn.interval", 2, 100 }, { "ap.phym", 0, 7 }, { "ap.phybw", 0, 2 },
    };
    nvs_handle_t handle;
    TRY(nvs_open("nvs.net80211", NVS_READWRITE, &handle));
    uint8_t ns = (uint8_t)handle;
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
        uint8_t data[80];
        place_t at;
        entry_t e;
        memset(data, settings[i].value, sizeof(data));
        if (nvs_find_value(ns, settings[i].key, &at, &e)) {
            continue;
        }
        TRY(settings[i].len == 0 ? nvs_set_number(ns, TYPE_U8, settings[i].key, data, 1)
            : nvs_set_blob(handle, settings[i].key, data, settings[i].len));
    }
    return BOARD_OK;
}
