# All C modules of ours, for ports built with CMake: what USER_C_MODULES names in an ESP32 build.
include(${CMAKE_CURRENT_LIST_DIR}/tlspolicy/micropython.cmake)
include(${CMAKE_CURRENT_LIST_DIR}/espboard/micropython.cmake)
