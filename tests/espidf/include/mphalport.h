// The clock of the port without a board: MicroPython's py/mphal.h declares what is used of it.
