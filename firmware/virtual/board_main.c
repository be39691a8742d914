// SPDX-License-Identifier: MIT
// Where the process begins: a board that boots a flash image, or a script on the host.
//
// Owns the command line and the order of the boot, which is that of MicroPython's ESP32 port:
// NVS, interpreter, file system, boot.py, main.py, prompt; Ctrl-D at the prompt starts the
// interpreter anew. Never shows the host's file system to a program on the board.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "py/cstack.h"
#include "py/gc.h"
#include "py/mphal.h"
#include "py/objstr.h"
#include "py/repl.h"
#include "py/runtime.h"
#include "shared/readline/readline.h"
#include "shared/runtime/pyexec.h"

#include "board.h"
#include "flash.h"
#include "nvs.h"

// An ESP32's task has 16 KiB of stack; frames are wider on a 64-bit host.
#define STACK_BYTES (16 * 1024 * sizeof(void *) / 4)

// The last second of the year 9999: what --clock takes.
#define LAST_CLOCK 253402300799

int mp_unix_main(int argc, char **argv);

// The unix port's main() reads it; without debug printers nobody else defines it.
mp_uint_t mp_verbose_flag;

const char board_help_text[] =
    "This is MicroPython on Outpost's virtual board.\n"
    "\n"
    "  import outpost          the device library\n"
    "  import os; os.listdir() what is in the flash's file system\n"
    "  import machine; machine.reset()\n"
    "\n"
    "Keys at the prompt: Ctrl-A raw prompt, Ctrl-B back, Ctrl-C stop, Ctrl-D restart, Ctrl-E paste\n";

// ---------------------------------------------------------------- command line

static const char usage[] =
    "usage: %s [-X heapsize=64K] [script.py …]\n"
    "       %s --board --flash flash.bin [-X heapsize=160K] [option …]\n"
    "options of the board:\n"
    "  --state FILE        what survives a reset: RTC memory, clock, reset cause\n"
    "  --report FILE       flash, heap and time figures as JSON, written at the end\n"
    "  --cut N[:clean|:torn|:odd]  the power goes at the N-th flash operation\n"
    "  --cause NAME        poweron, hard, wdt, deepsleep or soft\n"
    "  --clock UNIX        what the clock shows at the start (else 2000-01-01)\n"
    "  --speed N           1 to 100: its time runs N times as fast as the host's\n"
    "  --wifi SSID[:KEY]   the network in the air (else Espressif, open)\n"
    "  --hosts NAME=IP,…   names that the board can look up\n"
    "  --mac aa:bb:cc:dd:ee:ff\n"
    "exit codes: 70 reset, 71 watchdog, 72 deep sleep, 73 power cut, 75 cannot start\n";

static __attribute__((noreturn)) void bad_option(const char *program, const char *what) {
    fprintf(stderr, "%s: %s\n", program, what);
    fprintf(stderr, usage, program, program);
    exit(2);
}

typedef struct {
    uint64_t cut_at;
    int cut_mode;
    int cause;
    int64_t clock;
} boot_t;

static bool parse_size(const char *text, long *bytes) {
    char *end;
    long size = strtol(text, &end, 0);
    if ((*end | 0x20) == 'w') {
        size = size * (long)sizeof(void *) / 4;
        end++;
    }
    if ((*end | 0x20) == 'k') {
        size *= 1024;
        end++;
    } else if ((*end | 0x20) == 'm') {
        size *= 1024 * 1024;
        end++;
    }
    *bytes = size;
    return *end == 0 && size >= 4096;
}

static bool parse_cut(const char *text, boot_t *boot) {
    char *end;
    if (*text < '0' || *text > '9') {
        return false;
    }
    boot->cut_at = strtoull(text, &end, 10);
    boot->cut_mode = FLASH_CUT_TORN;
    if (strcmp(end, ":clean") == 0) {
        boot->cut_mode = FLASH_CUT_CLEAN;
    } else if (strcmp(end, ":odd") == 0) {
        boot->cut_mode = FLASH_CUT_ODD;
    } else if (*end != 0 && strcmp(end, ":torn") != 0) {
        return false;
    }
    return boot->cut_at > 0;
}

static bool parse_cause(const char *text, boot_t *boot) {
    static const char *const names[] = {"poweron", "hard", "wdt", "deepsleep", "soft"};
    for (int i = 0; i < 5; i++) {
        if (strcmp(text, names[i]) == 0) {
            boot->cause = i + 1;
            return true;
        }
    }
    return false;
}

static bool parse_wifi(const char *text) {
    const char *colon = strchrnul(text, ':');
    size_t length = (size_t)(colon - text);
    const char *key = *colon == ':' ? colon + 1 : "";
    if (length == 0 || length >= sizeof(board.wifi_ssid) || strlen(key) >= sizeof(board.wifi_key)) {
        return false;
    }
    memcpy(board.wifi_ssid, text, length);
    board.wifi_ssid[length] = 0;
    strcpy(board.wifi_key, key);
    return true;
}

static bool parse_mac(const char *text) {
    unsigned int part[6];
    char rest;
    if (text[strspn(text, "0123456789abcdefABCDEF:")] != 0 || sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%c", &part[0], &part[1], &part[2], &part[3], &part[4],
        &part[5], &rest) != 6) {
        return false;
    }
    for (int i = 0; i < 6; i++) {
        board.mac[i] = (uint8_t)part[i];
    }
    return true;
}

static bool parse_one(const char *name, char *value, boot_t *boot) {
    if (strcmp(name, "--flash") == 0) {
        board.flash_path = value;
    } else if (strcmp(name, "--state") == 0) {
        board.state_path = value;
    } else if (strcmp(name, "--report") == 0) {
        board.report_path = value;
    } else if (strcmp(name, "--hosts") == 0) {
        board.hosts = value;
    } else if (strcmp(name, "--cut") == 0) {
        return parse_cut(value, boot);
    } else if (strcmp(name, "--cause") == 0) {
        return parse_cause(value, boot);
    } else if (strcmp(name, "--wifi") == 0) {
        return parse_wifi(value);
    } else if (strcmp(name, "--mac") == 0) {
        return parse_mac(value);
    } else if (strcmp(name, "--clock") == 0) {
        char *end;
        boot->clock = strtoll(value, &end, 10);
        return *end == 0 && end != value && boot->clock >= 0 && boot->clock <= LAST_CLOCK;
    } else if (strcmp(name, "--speed") == 0) {
        char *end;
        board.speed = (int)strtol(value, &end, 10);
        return *end == 0 && board.speed >= 1 && board.speed <= 100;
    } else {
        return false;
    }
    return true;
}

// Takes the options of the board out of argv; what stays is the unix port's.
static int parse(int argc, char **argv, boot_t *boot) {
    int kept = 1;
    int at = 1;
    for (; at < argc && argv[at][0] == '-'; at++) {
        if (strcmp(argv[at], "--board") == 0) {
            board.is_board = true;
        } else if (strncmp(argv[at], "--", 2) == 0 && strcmp(argv[at], "--version") != 0) {
            if (strcmp(argv[at], "--help") == 0) {
                printf(usage, argv[0], argv[0]);
                exit(0);
            }
            if (at + 1 >= argc || !parse_one(argv[at], argv[at + 1], boot)) {
                char what[200];
                snprintf(what, sizeof(what), "option %s is unknown or its value is wrong", argv[at]);
                bad_option(argv[0], what);
            }
            at++;
        } else {
            bool last = strcmp(argv[at], "-c") == 0 || strcmp(argv[at], "-m") == 0;
            argv[kept++] = argv[at];
            if (strcmp(argv[at], "-X") == 0 && at + 1 < argc) {
                argv[kept++] = argv[++at];
                if (strncmp(argv[at], "heapsize=", 9) == 0
                    && !parse_size(argv[at] + 9, &board.heap_bytes)) {
                    bad_option(argv[0], "heapsize is a number of bytes of at least 4K");
                }
            }
            if (last) {
                at++;
                break;
            }
        }
    }
    if (board.is_board && at < argc) {
        bad_option(argv[0], "a board runs what is in its flash, not a script");
    }
    while (at < argc) {
        argv[kept++] = argv[at++];
    }
    argv[kept] = NULL;
    return kept;
}

// ---------------------------------------------------------------- the board

static void power_cut(void) {
    board_exit(BOARD_EXIT_POWER_CUT, 0);
}

static void run_scripts(void) {
    if (pyexec_frozen_module("_boot.py", false) & PYEXEC_FORCED_EXIT) {
        board_exit(BOARD_EXIT_CANNOT_START, 0);
    }
    int ret = pyexec_file_if_exists("boot.py");
    if (ret & PYEXEC_FORCED_EXIT) {
        return;
    }
    if (pyexec_mode_kind == PYEXEC_MODE_FRIENDLY_REPL && ret != 0) {
        ret = pyexec_file_if_exists("main.py");
        if (ret & PYEXEC_FORCED_EXIT) {
            return;
        }
    }
    for (;;) {
        if (board_console_ended()) {
            board_exit(BOARD_EXIT_DONE, 0);
        }
        int end = pyexec_mode_kind == PYEXEC_MODE_RAW_REPL ? pyexec_raw_repl() : pyexec_friendly_repl();
        if (end != 0) {
            return;
        }
    }
}

static const MP_DEFINE_STR_OBJ(lib_path_obj, "/lib");

static MP_NOINLINE void run_board(void) {
    char *heap = malloc((size_t)board.heap_bytes);
    if (heap == NULL) {
        board_cannot_start("The host has not enough memory for the board's heap.");
    }
    for (;;) {
        gc_init(heap, heap + board.heap_bytes);
        mp_init();
        mp_sys_path = mp_obj_new_list(0, NULL);
        mp_obj_list_append(mp_sys_path, MP_OBJ_NEW_QSTR(MP_QSTR_));
        mp_obj_list_append(mp_sys_path, MP_OBJ_NEW_QSTR(MP_QSTR__dot_frozen));
        mp_obj_list_append(mp_sys_path, MP_OBJ_FROM_PTR(&lib_path_obj));
        mp_obj_list_init(MP_OBJ_TO_PTR(mp_sys_argv), 0);
        readline_init0();
        run_scripts();
        gc_sweep_all();
        mp_hal_stdout_tx_str("MPY: soft reboot\r\n");
        board.reset_cause = BOARD_CAUSE_SOFT;
        mp_deinit();
    }
}

static void board_begin(const boot_t *boot) {
    board_state_load(boot->cause, boot->clock);
    if (board.flash_path == NULL) {
        board_cannot_start("The board has no flash: give an image with --flash.");
    }
    if (flash_open(board.flash_path) != 0) {
        board_cannot_start(flash_error());
    }
    flash_on_cut(power_cut);
    if (boot->cut_at > 0) {
        flash_cut_after(boot->cut_at, boot->cut_mode, (uint32_t)boot->cut_at);
    }
    const flash_partition_t *table;
    if (flash_partitions(&table) < 0) {
        board_cannot_start(flash_error());
    }
    flash_bootloader();
    nvs_start();
    nvs_status_t status;
    nvs_status(&status);
    if (status.sentence[0] != 0) {
        board_console_write(status.sentence, strlen(status.sentence));
        board_console_write("\n", 1);
    }
}

static int run_host(int argc, char **argv, const boot_t *boot) {
    if (board.flash_path != NULL) {
        if (flash_open(board.flash_path) != 0) {
            fprintf(stderr, "%s: %s\n", argv[0], flash_error());
            return BOARD_EXIT_CANNOT_START;
        }
        flash_on_cut(power_cut);
        if (boot->cut_at > 0) {
            flash_cut_after(boot->cut_at, boot->cut_mode, (uint32_t)boot->cut_at);
        }
        nvs_start();
    }
    return mp_unix_main(argc, argv);
}

int main(int argc, char **argv) {
    boot_t boot = {.clock = -1};
    argc = parse(argc, argv, &boot);
    board_signals_start();
    if (!board.is_board) {
        if (boot.clock >= 0) {
            board_clock_set_us(boot.clock * 1000000);
        }
        if (boot.cut_at > 0 && board.flash_path == NULL) {
            bad_option(argv[0], "--cut needs --flash");
        }
        int code = run_host(argc, argv, &boot);
        board_exit(code & 0xff, 0);
    }
    mp_cstack_init_with_sp_here(STACK_BYTES);
    board_begin(&boot);
    board_console_start();
    run_board();
    return 0;
}
