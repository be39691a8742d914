// SPDX-License-Identifier: MIT
// The configuration file of the virtual board: the unix port's, and what must differ from it.
//
// Owns the settings that ports/unix/mpconfigport.h makes without asking; it is read in its
// place (MP_CONFIGFILE). Never repeats what mpconfigvariant.h can set.
#ifndef OUTPOST_MPCONFIGVIRTUAL_H
#define OUTPOST_MPCONFIGVIRTUAL_H

#include "mpconfigport.h"

#undef MICROPY_EPOCH_IS_1970
#define MICROPY_EPOCH_IS_1970 (0)

#undef MICROPY_PY_MACHINE_INCLUDEFILE
#define MICROPY_PY_MACHINE_INCLUDEFILE "board_machine.h"
#undef MICROPY_PLAT_DEV_MEM
#define MICROPY_PLAT_DEV_MEM (0)

#undef MICROPY_PY_SYS_EXECUTABLE
#define MICROPY_PY_SYS_EXECUTABLE (0)

// Warnings go to the console, as on a board, which has no second channel.
#undef MICROPY_ERROR_PRINTER
#define MICROPY_ERROR_PRINTER (&mp_plat_print)

// Each import in progress keeps a path of this length on the stack.
#undef MICROPY_ALLOC_PATH_MAX
#define MICROPY_ALLOC_PATH_MAX (256)

#ifdef VIRTUAL_HIDE_HOST_FILES
#undef MICROPY_VFS_POSIX
#define MICROPY_VFS_POSIX (0)
#endif

#endif
