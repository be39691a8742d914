// SPDX-License-Identifier: MIT
// What extmod/modnetwork.c needs to know of the board's radio.
//
// Owns declarations only; see board_wlan.c.
#include "py/obj.h"

extern const mp_obj_type_t board_wlan_type;
MP_DECLARE_CONST_FUN_OBJ_0(board_network_init_obj);
MP_DECLARE_CONST_FUN_OBJ_KW(board_network_ipconfig_obj);
MP_DECLARE_CONST_FUN_OBJ_VAR_BETWEEN(board_network_phy_mode_obj);
