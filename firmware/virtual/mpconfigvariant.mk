# The virtual board: MicroPython's unix port, dressed as an ESP32.
#
# Owns what of the unix port is compiled in, and which of its functions give way to ours.
# Changes no file of MicroPython: where a function of the port must go, it is renamed while
# its one source file is compiled, and ours takes its name.

OUTPOST_LEG ?= outpost
FROZEN_MANIFEST ?= $(VARIANT_DIR)/manifest_$(OUTPOST_LEG).py

# Modules of the unix port that no ESP32 has. Our own socket module stands in for modsocket.c.
MICROPY_PY_FFI = 0
MICROPY_PY_BTREE = 0
MICROPY_PY_TERMIOS = 0
MICROPY_PY_JNI = 0
MICROPY_PY_SOCKET = 0
# The ESP32 has _thread; nothing of ours uses it, and one thread keeps the board deterministic.
MICROPY_PY_THREAD = 0

MICROPY_PY_SSL = 1
MICROPY_SSL_MBEDTLS = 1
MICROPY_USE_READLINE = 1
# Messages stand in the clear on the ESP32: unpacking them would cost heap that it does not.
MICROPY_ROM_TEXT_COMPRESSION = 0
MICROPY_VFS_FAT = 1
MICROPY_VFS_LFS1 = 0
MICROPY_VFS_LFS2 = 1

SHARED_SRC_C_EXTRA += runtime/pyexec.c runtime/sys_stdio_mphal.c netutils/netutils.c

# Our directories come first: include/py/mperrno.h has the numbers of lwIP and newlib.
INC += -I$(VARIANT_DIR)/include -I$(VARIANT_DIR)
CFLAGS += -DMP_CONFIGFILE='"mpconfigvirtual.h"'
CFLAGS += -DMICROPY_MPHALPORT_H='"mphalvirtual.h"'
ifeq ($(OUTPOST_LEG),stock)
CFLAGS += -DOUTPOST_LEG_STOCK=1
endif
# As ESP-IDF has it since 5.0: time_t of 64 bits, or the year 2038 ends every certificate.
CFLAGS += -D_FILE_OFFSET_BITS=64 -D_TIME_BITS=64
LDFLAGS += -lpthread

QSTR_GLOBAL_DEPENDENCIES += \
	$(VARIANT_DIR)/mpconfigvirtual.h \
	$(VARIANT_DIR)/board_machine.h \
	$(VARIANT_DIR)/board_network.h \
	$(VARIANT_DIR)/board_os.h \
	$(VARIANT_DIR)/board_time.h \
	$(VARIANT_DIR)/board_wdt.h

# The port's main() runs a script on the host; ours (board_main.c) chooses between the two.
$(BUILD)/main.o: CFLAGS += -Dmain=mp_unix_main

# The console of the board: board_console.c.
$(BUILD)/unix_mphal.o: CFLAGS += \
	-Dmp_hal_set_interrupt_char=unix_set_interrupt_char \
	-Dmp_hal_stdin_rx_chr=unix_stdin_rx_chr \
	-Dmp_hal_stdout_tx_strn=unix_stdout_tx_strn \
	-Dmp_hal_stdout_tx_strn_cooked=unix_stdout_tx_strn_cooked \
	-Dmp_hal_stdout_tx_str=unix_stdout_tx_str

# sys.stdin and its like are the console's, not files of the host.
$(BUILD)/extmod/vfs_posix_file.o: CFLAGS += \
	-Dmp_sys_stdin_obj=unix_sys_stdin_obj \
	-Dmp_sys_stdout_obj=unix_sys_stdout_obj \
	-Dmp_sys_stderr_obj=unix_sys_stderr_obj

# The host's file system serves scripts in tests; no program on the board can mount it.
$(BUILD)/extmod/modvfs.o $(BUILD)/extmod/modos.o: CFLAGS += -DVIRTUAL_HIDE_HOST_FILES=1

# A name that is new in C may have been one of the frozen modules' own: freeze them anew.
$(BUILD)/frozen_content.c: $(BUILD)/frozen.stamp
$(BUILD)/frozen.stamp: $(BUILD)/genhdr/qstrdefs.generated.h
	$(Q)$(RM) -f $(BUILD)/frozen_content.c
	$(Q)$(TOUCH) $@
