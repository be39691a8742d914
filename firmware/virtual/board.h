// SPDX-License-Identifier: MIT
// The virtual board's own state: clock, options, reset cause, and the one way out.
//
// Owns the process: every reset, sleep, watchdog bite and power cut ends in board_exit().
// Never includes a MicroPython header, so that flash, NVS and mbedtls code can use it too.
#ifndef OUTPOST_BOARD_H
#define OUTPOST_BOARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define BOARD_RTC_MEMORY 2048
#define BOARD_EPOCH_2000 946684800

// What the process exits with: the runner acts on it.
enum {
    BOARD_EXIT_DONE = 0,
    BOARD_EXIT_RESET = 70,
    BOARD_EXIT_WATCHDOG = 71,
    BOARD_EXIT_SLEEP = 72,
    BOARD_EXIT_POWER_CUT = 73,
    BOARD_EXIT_CANNOT_START = 75,
};

// machine.reset_cause(), with the numbers that MicroPython's ESP32 port has.
enum {
    BOARD_CAUSE_POWERON = 1,
    BOARD_CAUSE_HARD = 2,
    BOARD_CAUSE_WDT = 3,
    BOARD_CAUSE_DEEPSLEEP = 4,
    BOARD_CAUSE_SOFT = 5,
};

typedef struct {
    bool is_board;               // false: an ordinary script on the host
    long heap_bytes;
    const char *flash_path;
    const char *state_path;
    const char *report_path;
    const char *hosts;           // "name=ip,name=ip"
    uint8_t mac[6];
    char wifi_ssid[33];          // the one network in the air
    char wifi_key[65];           // "" : open
    int reset_cause;
    int speed;                   // how many times as fast as the host's its time runs
    int wake_reason;             // ESP-IDF's number; 4: the timer
    uint16_t rtc_length;
    uint8_t rtc_memory[BOARD_RTC_MEMORY];
} board_t;
extern board_t board;

// The board's clock, microseconds since 1970. Cold start: 2000-01-01.
int64_t board_unix_us(void);
void board_clock_set_us(int64_t unix_us);
uint64_t board_uptime_us(void);
// For mbedtls (MBEDTLS_PLATFORM_TIME_MACRO): certificates are judged by the board's clock.
time_t board_mbedtls_time(time_t *timer);

// Ends the process: saves the state (not after a power cut), writes the report, restores the
// terminal. sleep_ms is what deep sleep was asked for, -1 for ever. Safe in a signal handler
// and in any thread; the first caller wins.
void board_exit(int code, int64_t sleep_ms) __attribute__((noreturn));
// One sentence on the console, then exit 75.
void board_cannot_start(const char *sentence) __attribute__((noreturn));
void board_console_write(const char *text, size_t length);

// State that survives a reset: read at the start (and taken away), written at the end.
void board_state_load(int forced_cause, int64_t clock_unix);

// The watchdog. start and feed restart the count; pause is for light sleep.
int board_wdt_start(int64_t timeout_ms);
void board_wdt_feed(void);
void board_wdt_pause(bool paused);

// Console: a thread reads stdin, as the UART's interrupt does on the chip.
void board_console_start(void);
bool board_console_ended(void);
void board_console_restore(void);
void board_signals_start(void);

// Radio and name service, as the socket module asks for them.
bool board_wifi_up(void);

// The host's errno as the number an ESP32 has for it.
int board_errno(int host_errno);

// C heap taken by the TLS stack, in bytes asked for.
void *board_cheap_calloc(size_t count, size_t size);
void board_cheap_free(void *block);
void board_cheap_counts(size_t *now, size_t *peak);

#endif
