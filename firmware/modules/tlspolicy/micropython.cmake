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
target_sources(usermod_tlspolicy INTERFACE ${CMAKE_CURRENT_LIST_DIR}/tlspolicy.c)
target_include_directories(usermod_tlspolicy INTERFACE ${CMAKE_CURRENT_LIST_DIR})

set(TLSPOLICY_WRAPPED
    mbedtls_ssl_config_defaults
    mbedtls_ssl_config_free
    mbedtls_ssl_conf_authmode
    mbedtls_ssl_conf_ca_chain
    mbedtls_ssl_conf_ciphersuites
    mbedtls_ssl_conf_verify
    mbedtls_ssl_setup
    mbedtls_ssl_set_hostname
    mbedtls_ssl_set_bio
    mbedtls_ssl_handshake
    mbedtls_ssl_read
    mbedtls_ssl_write
    mbedtls_ssl_free
    mbedtls_ctr_drbg_random
    mbedtls_platform_set_time
    esp_mbedtls_mem_calloc
    esp_mbedtls_mem_free
)
foreach(function ${TLSPOLICY_WRAPPED})
    target_link_libraries(usermod_tlspolicy INTERFACE "-Wl,--wrap=${function}")
endforeach()

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
