// SPDX-License-Identifier: MIT
// The board's console: stdin as a UART with an interrupt, stdout written at once.
//
// Owns the thread that reads stdin, the ring between it and the interpreter, the terminal's
// mode, and what SIGINT and SIGTERM do. Never buffers output: a runner sees lines as they come.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "py/mphal.h"
#include "py/runtime.h"
#include "py/stream.h"
#include "extmod/misc.h"
#include "shared/runtime/pyexec.h"

#include "board.h"

#define CTRL_C (3)
#define CTRL_D (4)
#define CTRL_BRACKET (0x1d)
#define RING (4096)

int mp_interrupt_char = -1;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t room = PTHREAD_COND_INITIALIZER;
static pthread_cond_t arrived = PTHREAD_COND_INITIALIZER;
static uint8_t ring[RING];
static size_t ring_used;
static size_t ring_first;
static bool stdin_ended;
static bool stdin_is_terminal;
static bool stdout_is_terminal;
static bool terminal_is_raw;
static pthread_t main_thread;
static volatile sig_atomic_t ctrl_c_waiting;

// ---------------------------------------------------------------- signals

static void on_signal(int number) {
    if (number == SIGTERM || number == SIGHUP) {
        board_exit(128 + number, 0);
    }
    if (mp_interrupt_char == CTRL_C) {
        mp_sched_keyboard_interrupt();
    } else if (board.is_board) {
        ctrl_c_waiting = 1;     // at the prompt it is a character like any other
    }
}

static void catch(int number, void (*handler)(int)) {
    // No SA_RESTART: what waits must wake up and look.
    struct sigaction action = {.sa_handler = handler};
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, NULL);
}

void board_signals_start(void) {
    main_thread = pthread_self();
    signal(SIGPIPE, SIG_IGN);
    catch(SIGTERM, on_signal);
    catch(SIGHUP, on_signal);
    if (board.is_board) {
        catch(SIGINT, on_signal);
    }
}

// A program that runs in a terminal leaves it as it was, so that Ctrl-C is a signal for the
// board and its runner alike; the prompt reads single keys.
static void terminal_mode(bool raw) {
    if (stdin_is_terminal && raw != terminal_is_raw) {
        terminal_is_raw = raw;
        if (raw) {
            mp_hal_stdio_mode_raw();
        } else {
            mp_hal_stdio_mode_orig();
        }
    }
}

void board_console_restore(void) {
    terminal_mode(false);
}

void mp_hal_set_interrupt_char(char c) {
    mp_interrupt_char = (signed char)c;
    if (board.is_board) {
        terminal_mode(c != CTRL_C);
    } else {
        catch(SIGINT, c == CTRL_C ? on_signal : SIG_DFL);
    }
}

// ---------------------------------------------------------------- input

static void *reader(void *unused) {
    (void)unused;
    for (;;) {
        uint8_t bytes[256];
        ssize_t got = read(STDIN_FILENO, bytes, sizeof(bytes));
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0 && errno == EAGAIN) {
            struct pollfd wait = {.fd = STDIN_FILENO, .events = POLLIN};
            poll(&wait, 1, -1);
            continue;
        }
        pthread_mutex_lock(&lock);
        if (got <= 0) {
            stdin_ended = true;
            pthread_cond_broadcast(&arrived);
            pthread_mutex_unlock(&lock);
            return NULL;
        }
        for (ssize_t i = 0; i < got; i++) {
            if (bytes[i] == CTRL_C && mp_interrupt_char == CTRL_C) {
                pthread_kill(main_thread, SIGINT);
                continue;
            }
            if (bytes[i] == CTRL_BRACKET && stdin_is_terminal) {
                pthread_mutex_unlock(&lock);
                board_exit(BOARD_EXIT_DONE, 0);
            }
            // A program that Ctrl-C can stop and that does not read loses what it is sent, as from
            // a UART; if it waited for room here, the Ctrl-C behind would never be seen.
            while (ring_used == RING && mp_interrupt_char != CTRL_C) {
                pthread_cond_wait(&room, &lock);
            }
            if (ring_used < RING) {
                ring[(ring_first + ring_used++) % RING] = bytes[i];
            }
        }
        pthread_cond_broadcast(&arrived);
        pthread_mutex_unlock(&lock);
    }
}

void board_console_start(void) {
    stdin_is_terminal = isatty(STDIN_FILENO);
    stdout_is_terminal = isatty(STDOUT_FILENO);
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    if (pthread_create(&thread, NULL, reader, NULL) != 0) {
        stdin_ended = true;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

// Waits at most `ms` for a character. -1: none yet, -2: there will be none any more.
static int take(int ms) {
    int answer = -1;
    pthread_mutex_lock(&lock);
    if (ring_used == 0 && !stdin_ended && ms > 0) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += (long)ms * 1000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&arrived, &lock, &until);
    }
    if (ring_used > 0) {
        answer = ring[ring_first];
        ring_first = (ring_first + 1) % RING;
        ring_used--;
        pthread_cond_signal(&room);
    } else if (stdin_ended) {
        answer = -2;
    }
    pthread_mutex_unlock(&lock);
    return answer;
}

bool board_console_ended(void) {
    // Where there is something to read, be it the end, the thread is about to say what.
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    bool coming = poll(&input, 1, 0) > 0;
    pthread_mutex_lock(&lock);
    while (coming && !stdin_ended && ring_used == 0) {
        pthread_cond_wait(&arrived, &lock);
    }
    bool ended = stdin_ended && ring_used == 0;
    pthread_mutex_unlock(&lock);
    return ended;
}

static int host_rx_chr(void) {
    uint8_t c;
    for (;;) {
        ssize_t got = read(STDIN_FILENO, &c, 1);
        if (got == 1) {
            return c == '\n' ? '\r' : c;
        }
        if (got == 0 || errno != EINTR) {
            return CTRL_D;
        }
        mp_handle_pending(true);
    }
}

int mp_hal_stdin_rx_chr(void) {
    if (!board.is_board) {
        return host_rx_chr();
    }
    for (;;) {
        if (ctrl_c_waiting) {
            ctrl_c_waiting = 0;
            return CTRL_C;
        }
        int c = take(0);
        if (c == -1) {
            mp_handle_pending(true);
            int dup = mp_os_dupterm_rx_chr();
            if (dup >= 0) {
                return dup;
            }
            c = take(10);
        }
        if (c >= 0) {
            // Only the friendly prompt takes a line feed for the key; data stays as it is.
            return c == '\n' && pyexec_mode_kind == PYEXEC_MODE_FRIENDLY_REPL ? '\r' : c;
        }
        if (c == -2) {
            if (mp_interrupt_char != CTRL_C) {
                board_exit(BOARD_EXIT_DONE, 0);
            }
            return CTRL_D;
        }
    }
}

uintptr_t mp_hal_stdio_poll(uintptr_t poll_flags) {
    uintptr_t ready = poll_flags & MP_STREAM_POLL_WR;
    if (poll_flags & MP_STREAM_POLL_RD) {
        bool some;
        if (board.is_board) {
            pthread_mutex_lock(&lock);
            some = ring_used > 0 || stdin_ended;
            pthread_mutex_unlock(&lock);
        } else {
            struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
            some = poll(&input, 1, 0) > 0;
        }
        if (some) {
            ready |= MP_STREAM_POLL_RD;
        }
    }
    return ready | mp_os_dupterm_poll(poll_flags);
}

// ---------------------------------------------------------------- output

void board_console_write(const char *text, size_t length) {
    while (length > 0) {
        ssize_t wrote = write(STDOUT_FILENO, text, length);
        if (wrote > 0) {
            text += wrote;
            length -= (size_t)wrote;
        } else if (wrote < 0 && errno == EAGAIN) {
            struct pollfd wait = {.fd = STDOUT_FILENO, .events = POLLOUT};
            poll(&wait, 1, -1);
        } else if (wrote == 0 || errno != EINTR) {
            return;         // nobody listens to the console: the board runs on
        }
    }
}

mp_uint_t mp_hal_stdout_tx_strn(const char *str, size_t len) {
    board_console_write(str, len);
    int dup = mp_os_dupterm_tx_strn(str, len);
    return dup >= 0 ? MIN((mp_uint_t)dup, len) : len;
}

// What is printed, as a serial line has it: each new line begins on the left. Where stdout is a
// terminal the host's driver does that.
void mp_hal_stdout_tx_strn_cooked(const char *str, size_t len) {
    bool serial = board.is_board && !stdout_is_terminal;
    const char *line = serial ? memchr(str, '\n', len) : NULL;
    while (line != NULL) {
        size_t before = (size_t)(line - str);
        mp_hal_stdout_tx_strn(str, before);
        mp_hal_stdout_tx_strn("\r\n", 2);
        str += before + 1;
        len -= before + 1;
        line = memchr(str, '\n', len);
    }
    mp_hal_stdout_tx_strn(str, len);
}

void mp_hal_stdout_tx_str(const char *str) {
    mp_hal_stdout_tx_strn(str, strlen(str));
}
