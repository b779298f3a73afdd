"""Random damage, of bytes and of what they mean: JSON texts, and the opcodes of pickles."""

import io
import json
import pickletools

NUMBERS = (0, 1, -1, 2, 3, 7, 8, 127, 255, 256, 2**31 - 1, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30)
TEXTS = ("", "a", "F32", "BF16", "I64", "F4", "dtype", "shape", "data_offsets", "__metadata__", "../x", "\0")
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


def of_bytes(dice, data, most=4):
    """Change, remove, insert or copy a few bytes."""
    data = bytearray(data)
    for _ in range(dice.randint(1, most)):
        place = dice.randrange(len(data)) if data else 0
        change = dice.randrange(8)
        if change < 3 and data:
            data[place] = dice.choice(
                (*INTERESTING, dice.randrange(256), data[place] ^ 1 << dice.randrange(8))
            )
        elif change == 3:
            del data[place : place + dice.choice((1, 1, 2, 4, 8, 30))]
        elif change == 4:
            data[place:place] = dice.randbytes(dice.choice((1, 1, 2, 4, 8)))
        elif change == 5 and data:
            other = dice.randrange(len(data))
            data[place:place] = data[other : other + dice.randint(1, 40)]
        elif change == 6 and data:
            other, count = dice.randrange(len(data)), dice.choice((1, 2, 4, 8))
            data[place : place + count] = data[other : other + count]
        elif not dice.randrange(8):
            del data[place:]
    return bytes(data)


def of_json(dice, text):
    """Change one or two values or keys of a JSON text, and now and then its bytes."""
    value = json.loads(text)
    for _ in range(dice.randint(1, 2)):
        value = _changed(dice, value)
    written = json.dumps(value, ensure_ascii=bool(dice.randrange(2)))
    if not dice.randrange(6):
        written = _with_a_key_twice(dice, written)
    data = written.encode("utf-8", "surrogatepass")
    return of_bytes(dice, data, 1) if not dice.randrange(5) else data


def _with_a_key_twice(dice, written):
    place = written.find("{", dice.randrange(len(written)))
    return written if place < 0 else f'{written[: place + 1]}"a": 1, "a": 1, {written[place + 1 :]}'


def _changed(dice, value):
    """Return a value in which one thing is another; the deeper, the likelier."""
    if isinstance(value, dict) and value and dice.randrange(5):
        key = dice.choice(list(value))
        changed = dict(value)
        action = dice.randrange(8)
        if action == 0:
            del changed[key]
        elif action == 1:
            changed[dice.choice((*TEXTS, *value))] = value[key]
        else:
            changed[key] = _changed(dice, value[key])
        return changed
    if isinstance(value, list) and value and dice.randrange(5):
        place = dice.randrange(len(value))
        return [_changed(dice, one) if index == place else one for index, one in enumerate(value)]
    return _anything(dice, value)


def _anything(dice, value):
    if isinstance(value, int) and dice.randrange(3):
        return value + dice.choice((-8, -4, -1, 1, 4, 8, 2**32, 2**63))
    if isinstance(value, list) and dice.randrange(3):
        return [*value, dice.choice(NUMBERS)] if dice.randrange(2) else value[1:]
    return dice.choice((*NUMBERS, *TEXTS, None, True, 1.5, [], {}, [value], {"a": value}, value))


def of_pickle(dice, data):
    """Remove, repeat, swap or damage whole opcodes; or bytes, as often."""
    if dice.randrange(2):
        return of_bytes(dice, data)
    starts = [place for _, _, place in pickletools.genops(data)]
    codes = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(dice.randint(1, 3)):
        place, other = dice.randrange(len(codes)), dice.randrange(len(codes))
        change = dice.randrange(5)
        if change == 0 and len(codes) > 2:
            del codes[place]
        elif change == 1:
            codes.insert(place, codes[other])
        elif change == 2:
            codes[place], codes[other] = codes[other], codes[place]
        elif change == 3:
            codes[place] = codes[other]
        else:
            codes[place] = of_bytes(dice, codes[place], 1)
    return b"".join(codes)


def pickles_in(data, count):
    """Split the first pickles off; return them, and what follows."""
    stream, found = io.BytesIO(data), []
    for _ in range(count):
        begin = stream.tell()
        for _ in pickletools.genops(stream):
            pass
        found.append(data[begin : stream.tell()])
    return found, data[stream.tell() :]


def rearranged(dice, pieces, last):
    """Swap, repeat or remove one of some pieces, lines or blocks; or change it by `last`."""
    place, other = dice.randrange(len(pieces)), dice.randrange(len(pieces))
    change = dice.randrange(4)
    if change == 0:
        pieces[place], pieces[other] = pieces[other], pieces[place]
    elif change == 1:
        pieces.insert(place, pieces[other])
    elif change == 2:
        del pieces[place]
    else:
        pieces[place] = last(pieces[place])
    return b"".join(pieces)
