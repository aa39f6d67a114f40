"""Label maps as PNG files: Pillow tries five filters on each row, which labels do not need and which take most of the
time of writing them."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_UP = 2  # the filter by which a row is its difference to the row above


def label_png(labels: np.ndarray) -> bytes:
    """A PNG file of 8-bit grey (Pillow's mode L) with these numbers.

    Args:
        labels: uint8 (H, W).

    Source: PNG specification, third edition, chapters 5 (chunks), 9 (filters) and 11 (IHDR, IDAT, IEND).
    """
    height, width = labels.shape
    rows = np.empty((height, 1 + width), np.uint8)
    rows[:, 0] = _UP
    rows[0, 1:] = labels[0]
    np.subtract(labels[1:], labels[:-1], out=rows[1:, 1:])
    deflate = zlib.compressobj(level=1, strategy=zlib.Z_RLE)  # all runs of zeros: smaller than by the default, too
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = deflate.compress(rows.tobytes()) + deflate.flush()
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
