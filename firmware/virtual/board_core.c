// SPDX-License-Identifier: MIT
// Clock, saved state, report, watchdog and the one way out of the virtual board.
//
// Owns the process's end and the files named by --state and --report.
// Never touches the GC heap: nothing here is seen by a program's memory figures.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "board.h"
#include "flash.h"

board_t board = {
    .heap_bytes = 160 * 1024,
    .mac = {0x24, 0x0a, 0xc4, 0x00, 0x00, 0x01},
    .wifi_ssid = "Espressif",
    .reset_cause = BOARD_CAUSE_POWERON,
    .speed = 1,
};

// ---------------------------------------------------------------- clock

static int64_t clock_offset_us;   // board's clock - board's uptime
static int64_t start_us;          // host's monotonic time

static int64_t host_us(clockid_t id) {
    struct timespec ts;
    clock_gettime(id, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

__attribute__((constructor)) static void clock_begin(void) {
    start_us = host_us(CLOCK_MONOTONIC);
    clock_offset_us = host_us(CLOCK_REALTIME);
}

int64_t board_unix_us(void) {
    return (int64_t)board_uptime_us() + clock_offset_us;
}

void board_clock_set_us(int64_t unix_us) {
    clock_offset_us = unix_us - (int64_t)board_uptime_us();
}

uint64_t board_uptime_us(void) {
    return (uint64_t)((host_us(CLOCK_MONOTONIC) - start_us) * board.speed);
}

time_t board_mbedtls_time(time_t *timer) {
    time_t now = (time_t)(board_unix_us() / 1000000);
    if (timer != NULL) {
        *timer = now;
    }
    return now;
}

// ---------------------------------------------------------------- state across resets

// One fixed block: the board writes and reads it on the same machine.
typedef struct {
    char magic[8];
    int32_t cause;
    int32_t wake_reason;
    int64_t clock_minus_host_us;   // the RTC runs on while the board is off
    uint32_t rtc_length;
    uint8_t rtc_memory[BOARD_RTC_MEMORY];
} saved_t;

static const char state_magic[8] = {'o', 'u', 't', 'p', 'o', 's', 't', '1'};

static bool write_file(const char *path, const void *data, size_t length) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) {
        return false;
    }
    bool whole = write(fd, data, length) == (ssize_t)length;
    return close(fd) == 0 && whole;
}

void board_state_load(int forced_cause, int64_t clock_unix) {
    saved_t saved;
    bool warm = false;
    if (board.state_path != NULL) {
        int fd = open(board.state_path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            warm = read(fd, &saved, sizeof(saved)) == (ssize_t)sizeof(saved)
                && memcmp(saved.magic, state_magic, sizeof(state_magic)) == 0
                && saved.rtc_length <= BOARD_RTC_MEMORY;
            close(fd);
        }
        // A process that is killed has lost its power: nothing stale may be left behind.
        unlink(board.state_path);
    }
    if (forced_cause == BOARD_CAUSE_POWERON) {
        warm = false;
    }
    board.reset_cause = BOARD_CAUSE_POWERON;
    board_clock_set_us((int64_t)BOARD_EPOCH_2000 * 1000000);
    if (warm) {
        board.reset_cause = saved.cause;
        board.wake_reason = saved.wake_reason;
        board.rtc_length = (uint16_t)saved.rtc_length;
        memcpy(board.rtc_memory, saved.rtc_memory, saved.rtc_length);
        board_clock_set_us(host_us(CLOCK_REALTIME) + saved.clock_minus_host_us);
    }
    if (forced_cause != 0) {
        board.reset_cause = forced_cause;
        board.wake_reason = forced_cause == BOARD_CAUSE_DEEPSLEEP ? 4 : 0;
    }
    if (clock_unix >= 0) {
        board_clock_set_us(clock_unix * 1000000);
    }
}

static void state_save(int code, int64_t sleep_ms) {
    static saved_t saved;
    if (board.state_path == NULL || !board.is_board || code == BOARD_EXIT_POWER_CUT) {
        return;
    }
    memcpy(saved.magic, state_magic, sizeof(state_magic));
    saved.cause = BOARD_CAUSE_HARD;
    saved.wake_reason = 0;
    if (code == BOARD_EXIT_WATCHDOG) {
        saved.cause = BOARD_CAUSE_WDT;
    } else if (code == BOARD_EXIT_SLEEP) {
        saved.cause = BOARD_CAUSE_DEEPSLEEP;
        saved.wake_reason = sleep_ms >= 0 ? 4 : 0;
    }
    saved.clock_minus_host_us = board_unix_us() - host_us(CLOCK_REALTIME);
    saved.rtc_length = board.rtc_length;
    memcpy(saved.rtc_memory, board.rtc_memory, sizeof(saved.rtc_memory));
    write_file(board.state_path, &saved, sizeof(saved));
}

// ---------------------------------------------------------------- report

static char report_text[8192];

__attribute__((format(printf, 2, 3)))
static size_t add(size_t at, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int wrote = vsnprintf(report_text + at, sizeof(report_text) - at, format, args);
    va_end(args);
    return wrote > 0 && at + (size_t)wrote < sizeof(report_text) ? at + (size_t)wrote : at;
}

static void report_write(int code, int64_t sleep_ms) {
    if (board.report_path == NULL) {
        return;
    }
    flash_counts_t counts = {0};
    if (flash_is_open()) {
        flash_counts(&counts);
    }
    size_t now = 0;
    size_t peak = 0;
    board_cheap_counts(&now, &peak);
    size_t at = add(0, "{\"flash\": {\"erases\": %llu, \"programs\": %llu, \"bytes_programmed\": %llu, "
        "\"operations\": %llu, \"erases_by_partition\": {",
        (unsigned long long)counts.erases, (unsigned long long)counts.programs,
        (unsigned long long)counts.bytes_programmed,
        (unsigned long long)(flash_is_open() ? flash_operations() : 0));
    const flash_partition_t *table = NULL;
    int partitions = flash_is_open() ? flash_partitions(&table) : 0;
    for (int i = 0; i < partitions; i++) {
        at = add(at, "%s\"%s\": %llu", i == 0 ? "" : ", ", table[i].label,
            (unsigned long long)flash_partition_erases(&table[i]));
    }
    at = add(at, "}}, \"c_heap\": {\"now\": %llu, \"peak\": %llu}, \"exit\": %d, "
        "\"uptime_ms\": %llu, \"sleep_ms\": %lld}\n",
        (unsigned long long)now, (unsigned long long)peak, code,
        (unsigned long long)(board_uptime_us() / 1000), (long long)sleep_ms);
    write_file(board.report_path, report_text, at);
}

// ---------------------------------------------------------------- the way out

static atomic_flag leaving = ATOMIC_FLAG_INIT;

void board_exit(int code, int64_t sleep_ms) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    if (atomic_flag_test_and_set(&leaving)) {
        for (;;) {
            pause();
        }
    }
    state_save(code, sleep_ms);
    report_write(code, sleep_ms);
    board_console_restore();
    _exit(code);
}

void board_cannot_start(const char *sentence) {
    board_console_write(sentence, strlen(sentence));
    board_console_write("\n", 1);
    board_exit(BOARD_EXIT_CANNOT_START, 0);
}

// ---------------------------------------------------------------- watchdog

static pthread_mutex_t wdt_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wdt_changed;
static bool wdt_running;
static bool wdt_paused;
static int64_t wdt_timeout_us;
static int64_t wdt_deadline_us;

static void *wdt_thread(void *unused) {
    (void)unused;
    pthread_mutex_lock(&wdt_lock);
    for (;;) {
        int64_t now = host_us(CLOCK_MONOTONIC);
        if (!wdt_paused && now >= wdt_deadline_us) {
            break;
        }
        int64_t until = wdt_paused ? now + 1000000 : wdt_deadline_us;
        struct timespec ts = {
            .tv_sec = (time_t)(until / 1000000),
            .tv_nsec = (long)(until % 1000000) * 1000,
        };
        pthread_cond_timedwait(&wdt_changed, &wdt_lock, &ts);
    }
    static const char said[] = "\nwatchdog: not fed in time, the board restarts\n";
    board_console_write(said, sizeof(said) - 1);
    board_exit(BOARD_EXIT_WATCHDOG, 0);
}

int board_wdt_start(int64_t timeout_ms) {
    pthread_mutex_lock(&wdt_lock);
    wdt_timeout_us = timeout_ms * 1000 / board.speed;
    wdt_deadline_us = host_us(CLOCK_MONOTONIC) + wdt_timeout_us;
    int error = 0;
    if (!wdt_running) {
        pthread_condattr_t attr;
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(&wdt_changed, &attr);
        sigset_t all;
        sigset_t before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        pthread_t thread;
        error = pthread_create(&thread, NULL, wdt_thread, NULL);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        wdt_running = error == 0;
    } else {
        pthread_cond_signal(&wdt_changed);
    }
    pthread_mutex_unlock(&wdt_lock);
    return error;
}

void board_wdt_feed(void) {
    pthread_mutex_lock(&wdt_lock);
    wdt_deadline_us = host_us(CLOCK_MONOTONIC) + wdt_timeout_us;
    pthread_mutex_unlock(&wdt_lock);
}

void board_wdt_pause(bool paused) {
    if (!wdt_running) {
        return;
    }
    pthread_mutex_lock(&wdt_lock);
    static int64_t left_us;
    int64_t now = host_us(CLOCK_MONOTONIC);
    if (paused && !wdt_paused) {
        left_us = wdt_deadline_us - now;
    } else if (!paused && wdt_paused) {
        wdt_deadline_us = now + left_us;
    }
    wdt_paused = paused;
    pthread_cond_signal(&wdt_changed);
    pthread_mutex_unlock(&wdt_lock);
}
