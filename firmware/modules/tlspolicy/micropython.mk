# tlspolicy for ports built with make (the unix port).
#
# Owns the list of functions that the linker hands to tlspolicy.c first; micropython.cmake
# has the same list. Never changes a file of MicroPython or mbedtls.

comma := ,
TLSPOLICY_DIR := $(USERMOD_DIR)

SRC_USERMOD_C += $(wildcard $(TLSPOLICY_DIR)/tlspolicy*.c)
CFLAGS_USERMOD += -I$(TLSPOLICY_DIR)

# The clock that certificates are judged by: `time_t name(time_t *)`.
TLSPOLICY_CLOCK ?= time
CFLAGS_USERMOD += -DTLSPOLICY_CLOCK=$(TLSPOLICY_CLOCK)

TLSPOLICY_WRAPPED := \
	mbedtls_ssl_config_defaults \
	mbedtls_ssl_config_free \
	mbedtls_ssl_conf_authmode \
	mbedtls_ssl_conf_ca_chain \
	mbedtls_ssl_conf_ciphersuites \
	mbedtls_ssl_conf_own_cert \
	mbedtls_ssl_conf_verify \
	mbedtls_ssl_setup \
	mbedtls_ssl_set_hostname \
	mbedtls_ssl_set_bio \
	mbedtls_ssl_handshake \
	mbedtls_ssl_read \
	mbedtls_ssl_write \
	mbedtls_ssl_free \
	mbedtls_ctr_drbg_random \
	mbedtls_ecdsa_write_signature \
	nvs_open

LDFLAGS_USERMOD += $(addprefix -Wl$(comma)--wrap=,$(TLSPOLICY_WRAPPED))
