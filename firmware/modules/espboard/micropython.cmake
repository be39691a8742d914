# espboard: what our boards do otherwise than stock MicroPython before any Python runs.
#
# Owns the start of the NVS and the ban on access points. Only ESP32 has this module: it has no
# micropython.mk, so a build by make passes it by.
add_library(usermod_espboard INTERFACE)
target_sources(usermod_espboard INTERFACE ${CMAKE_CURRENT_LIST_DIR}/espboard.c)
target_include_directories(usermod_espboard INTERFACE ${CMAKE_CURRENT_LIST_DIR})
target_link_libraries(usermod_espboard INTERFACE "-Wl,--wrap=esp_wifi_set_mode")
target_link_libraries(usermod INTERFACE usermod_espboard)
