"""State: merge patches (RFC 7396) over the parsed JSON of a twin. Keeps nothing."""

import json

from micropython import const

SIZE_MAX = const(32768)  # IoT Hub's limit for the reported properties


class _Missing:
    def __repr__(self):
        return "missing"


missing = _Missing()


def patched(value, patch):
    """What `value` is after the patch: a null removes. Neither is changed."""
    result = dict(value)
    for name, part in patch.items():
        if part is None:
            result.pop(name, None)
        elif isinstance(part, dict):
            below = result.get(name)
            result[name] = patched(below if isinstance(below, dict) else {}, part)
        else:
            result[name] = part
    return result


def merge(first, then):
    """One patch that does what both do, one after the other. Neither is changed."""
    result = dict(first)
    for name, part in then.items():
        before = result.get(name)
        if isinstance(part, dict) and isinstance(before, dict):
            result[name] = merge(before, part)
        else:
            result[name] = part
    return result


def difference(known, wanted):
    """The part of the patch `wanted` that would change `known`; `missing` where none would."""
    if isinstance(wanted, dict):
        if not isinstance(known, dict):
            return wanted
        changed = {}
        for name, value in wanted.items():
            part = difference(known.get(name, missing), value)
            if part is not missing:
                changed[name] = part
        return changed if changed else missing
    if wanted is None and known is missing:
        return missing
    return missing if same(known, wanted) else wanted


def same(one, other):
    """Whether both have the same JSON: 1, 1.0 and True are equal and three different things."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all([same(one[i], other[i]) for i in range(len(one))])
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return len(one) == len(other) and all([same(one[k], other.get(k, missing)) for k in one])
    return one == other


def size(value):
    """Bytes of its shortest JSON, without making all of it at once."""
    if isinstance(value, dict):
        return 1 + sum([size(name) + 2 + size(part) for name, part in value.items()])
    if isinstance(value, (list, tuple)):
        return 1 + sum([1 + size(part) for part in value])
    return len(json.dumps(value).encode())
