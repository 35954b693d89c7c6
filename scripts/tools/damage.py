"""Random changes that damage a file."""

from __future__ import annotations

import io
import random
import struct
import zipfile

NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**40, -(2**40), 2**63 - 1)
TEXTS = ("", "x", "w0", "y", "../x", "/etc/passwd", "<b>", "\0", "ä" * 300, "conv1", "a/b", "..")


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """Change single bytes, or overwrite, remove, repeat or cut off a part."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        length = min(rng.choice((1, 2, 4, 8, 64, 512)), len(data))
        start = rng.randrange(len(data))
        stop = start + length
        kind = rng.randrange(6)
        if kind == 0:
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[start:stop] = rng.randbytes(length)
        elif kind == 2:
            del data[start:stop]
        elif kind == 3:
            data[start:start] = data[start:stop]
        elif kind == 4:
            del data[start:]
        else:
            number = rng.choice(NUMBERS) & (2**64 - 1)
            data[start : start + 8] = struct.pack(rng.choice("<>") + "Q", number)
    return bytes(data)


def damaged_archive(rng: random.Random, content: bytes) -> bytes:
    """Damage, rename, remove or replace a member of an archive."""
    read = zipfile.ZipFile(io.BytesIO(content))
    names, out = read.namelist(), io.BytesIO()
    victim = rng.choice(names)
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as made:
        for name in names:
            member = read.read(name)
            if name == victim:
                kind = rng.randrange(6)
                if kind == 0:
                    continue
                if kind == 1:
                    name = rng.choice(
                        ("../../hostile", "/tmp/flatconv_hostile", name + "x", "a/../b")
                    )
                elif kind == 2:
                    member = bytes(rng.choice((0, 10, 10**6, 3 * 10**8)))  # of zeros: a bomb
                else:
                    member = damaged_bytes(rng, member)
            made.writestr(name, member)
    return out.getvalue()
