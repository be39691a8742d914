"""Parts: modules that are in memory only while there is work for them.

Read from flash, a module's code is in RAM; frozen, its names and functions still are. Owns no
flash. What somebody still holds an object of stays in memory by itself.
"""

import gc
import sys

_PACKAGE = __name__.rpartition(".")[0]


def do(part, name, *args):
    """Load a module, call its function, let go of it."""
    try:
        return getattr(load(part), name)(*args)
    finally:
        let_go(part)


def load(part):
    gc.collect()
    part = _PACKAGE + "." + part
    __import__(part)
    return sys.modules[part]


def let_go(*parts):
    """Forget modules (or their names) that have done their work: they are loaded again where they
    are needed again."""
    for part in parts:
        part = getattr(part, "__name__", part).rpartition(".")[2]
        sys.modules.pop(_PACKAGE + "." + part, None)
        package = sys.modules[_PACKAGE]
        if hasattr(package, part):
            delattr(package, part)
