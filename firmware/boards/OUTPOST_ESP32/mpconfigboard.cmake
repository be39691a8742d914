set(IDF_TARGET esp32)
include(${CMAKE_CURRENT_LIST_DIR}/../outpost.cmake)
