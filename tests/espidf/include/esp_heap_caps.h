// Stands in for ESP-IDF's header of this name: what our C uses of it, with the types it has there.
#pragma once
#include <stddef.h>
size_t heap_caps_get_allocated_size(void *memory);
