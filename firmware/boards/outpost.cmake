# What every board of ours has in common; each <BOARD>/mpconfigboard.cmake includes it.
#
# Owns the order of the sdkconfig files (a later line goes before an earlier one), the layout of the
# flash, and what is frozen. Never names a path outside MicroPython's tree and this one.
#   OUTPOST_LAYOUT      single: one application of 0x1f0000 as stock has it; ota: two slots
#   OUTPOST_FLASH_MIB   4, 8 or 16
#   OUTPOST_ENCRYPTED   ON: flash and NVS encryption. It burns fuses at the first start.

get_filename_component(OUTPOST_BOARDS ${CMAKE_CURRENT_LIST_DIR} ABSOLUTE)

if(NOT OUTPOST_LAYOUT)
    set(OUTPOST_LAYOUT single)
endif()
if(NOT OUTPOST_FLASH_MIB)
    set(OUTPOST_FLASH_MIB 4)
endif()
set(OUTPOST_TABLE ${OUTPOST_BOARDS}/partitions-${OUTPOST_FLASH_MIB}MiB)
if(OUTPOST_LAYOUT STREQUAL ota)
    set(OUTPOST_TABLE ${OUTPOST_TABLE}-ota)
elseif(NOT OUTPOST_LAYOUT STREQUAL single)
    message(FATAL_ERROR "OUTPOST_LAYOUT is single or ota, not ${OUTPOST_LAYOUT}.")
endif()
set(OUTPOST_TABLE ${OUTPOST_TABLE}.csv)
if(OUTPOST_PARTITIONS)
    # Made from the same table, with a partition for the keys of the NVS in it.
    set(OUTPOST_TABLE ${OUTPOST_PARTITIONS})
endif()
if(NOT EXISTS ${OUTPOST_TABLE})
    message(FATAL_ERROR "There is no partition table ${OUTPOST_TABLE}.")
endif()

set(OUTPOST_CHOSEN ${CMAKE_BINARY_DIR}/sdkconfig.chosen)
file(WRITE ${OUTPOST_CHOSEN}
    "# Written by firmware/boards/outpost.cmake from what was chosen.\n"
    "CONFIG_PARTITION_TABLE_CUSTOM=y\n"
    "CONFIG_PARTITION_TABLE_CUSTOM_FILENAME=\"${OUTPOST_TABLE}\"\n")
foreach(size 2 4 8 16 32)
    if(size EQUAL OUTPOST_FLASH_MIB)
        file(APPEND ${OUTPOST_CHOSEN} "CONFIG_ESPTOOLPY_FLASHSIZE_${size}MB=y\n")
    else()
        file(APPEND ${OUTPOST_CHOSEN} "CONFIG_ESPTOOLPY_FLASHSIZE_${size}MB=n\n")
    endif()
endforeach()
if(OUTPOST_LAYOUT STREQUAL ota AND OUTPOST_FLASH_MIB EQUAL 4)
    # A slot has 0x180000 bytes: as MicroPython's own table for this, built for size.
    file(APPEND ${OUTPOST_CHOSEN}
        "CONFIG_COMPILER_OPTIMIZATION_SIZE=y\n"
        "CONFIG_COMPILER_OPTIMIZATION_PERF=n\n"
        "CONFIG_COMPILER_OPTIMIZATION_CHECKS_SILENT=y\n")
endif()

set(SDKCONFIG_DEFAULTS
    boards/sdkconfig.base
    ${OUTPOST_STOCK_SDKCONFIG}
    ${OUTPOST_BOARDS}/sdkconfig.outpost
    ${MICROPY_BOARD_DIR}/sdkconfig.board
    ${OUTPOST_CHOSEN}
)
if(OUTPOST_ENCRYPTED)
    list(APPEND SDKCONFIG_DEFAULTS ${OUTPOST_BOARDS}/sdkconfig.encrypted)
endif()

set(MICROPY_FROZEN_MANIFEST ${OUTPOST_BOARDS}/manifest.py)

list(APPEND MICROPY_DEF_BOARD
    MP_CONFIGFILE="${OUTPOST_BOARDS}/mpconfigoutpost.h"
)
