// Stands in for the header that ESP-IDF makes of the sdkconfig.
#pragma once
#define CONFIG_IDF_TARGET_ESP32C3 1
