#define MICROPY_HW_BOARD_NAME "Outpost board"
#define MICROPY_HW_MCU_NAME "ESP32"

#include "../outpost_board.h"
