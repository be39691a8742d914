# tlspolicy for ports built with CMake (ESP32, MicroPython 1.26 or later).
#
# Owns the list of functions that the linker hands to tlspolicy.c first; micropython.mk has the
# same list, and here come the allocator and the clock of ESP-IDF. Never changes a file of
# MicroPython, mbedtls or ESP-IDF.

if(CONFIG_MBEDTLS_DYNAMIC_BUFFER)
    message(FATAL_ERROR
        "tlspolicy manages the TLS buffers itself: set CONFIG_MBEDTLS_DYNAMIC_BUFFER=n")
endif()

add_library(usermod_tlspolicy INTERFACE)
file(GLOB TLSPOLICY_SOURCES ${CMAKE_CURRENT_LIST_DIR}/tlspolicy*.c)
target_sources(usermod_tlspolicy INTERFACE ${TLSPOLICY_SOURCES})
target_include_directories(usermod_tlspolicy INTERFACE ${CMAKE_CURRENT_LIST_DIR})

set(TLSPOLICY_WRAPPED
    mbedtls_ssl_config_defaults
    mbedtls_ssl_config_free
    mbedtls_ssl_conf_authmode
    mbedtls_ssl_conf_ca_chain
    mbedtls_ssl_conf_ciphersuites
    mbedtls_ssl_conf_own_cert
    mbedtls_ssl_conf_verify
    mbedtls_ssl_setup
    mbedtls_ssl_set_hostname
    mbedtls_ssl_set_bio
    mbedtls_ssl_handshake
    mbedtls_ssl_read
    mbedtls_ssl_write
    mbedtls_ssl_free
    mbedtls_ctr_drbg_random
    mbedtls_ecdsa_write_signature
    nvs_open
    mbedtls_platform_set_time
    esp_mbedtls_mem_calloc
    esp_mbedtls_mem_free
)
foreach(function ${TLSPOLICY_WRAPPED})
    target_link_libraries(usermod_tlspolicy INTERFACE "-Wl,--wrap=${function}")
endforeach()

# The keys lie in the NVS, whose raw bytes MicroPython's own modules must not reach: while these two
# of its files are compiled, the calls that they make into ESP-IDF have the names of tlspolicy's
# (tlspolicy_store.c). nvs_flash, esp_partition and spi_flash, which tlspolicy calls, are among what
# MicroPython's ESP32 port requires already.
set_property(SOURCE ${MICROPY_PORT_DIR}/esp32_partition.c APPEND PROPERTY COMPILE_DEFINITIONS
    esp_partition_read=tlspolicy_partition_read
    esp_partition_write=tlspolicy_partition_write
    esp_partition_erase_range=tlspolicy_partition_erase_range
    esp_partition_mmap=tlspolicy_partition_mmap
)
set_property(SOURCE ${MICROPY_PORT_DIR}/modesp.c APPEND PROPERTY COMPILE_DEFINITIONS
    esp_flash_read=tlspolicy_flash_read
    esp_flash_write=tlspolicy_flash_write
    esp_flash_erase_region=tlspolicy_flash_erase_region
)

# mbedtls reads this after ESP-IDF's configuration; the code that uses mbedtls must see the same.
# It sets what ESP-IDF calls CONFIG_MBEDTLS_X509_TRUSTED_CERT_CALLBACK=y and
# CONFIG_MBEDTLS_SSL_KEEP_PEER_CERTIFICATE=n: a board's sdkconfig should say so too.
foreach(library mbedcrypto mbedx509 mbedtls)
    if(TARGET ${library})
        target_compile_definitions(${library} PUBLIC
            MBEDTLS_USER_CONFIG_FILE="${CMAKE_CURRENT_LIST_DIR}/tlspolicy_config.h")
    endif()
endforeach()

target_link_libraries(usermod INTERFACE usermod_tlspolicy)
