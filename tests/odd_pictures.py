"""Pictures as they lie in people's folders: odd ones that can be used, and ones that cannot."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIZE = (96, 64)


def scene(size=SIZE, mode="RGB"):
    """Red left, green right, darker to the bottom; easy to recognise."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    shade = np.linspace(220, 120, height, dtype=np.uint8)[:, None]
    pixels[:, : width // 2, 0] = shade
    pixels[:, width // 2 :, 1] = shade
    return Image.fromarray(pixels).convert(mode)


def encoded(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def turned(orientation, picture=None, kind="JPEG", **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = scene() if picture is None else picture
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    return encoded(upright.transpose(undo[orientation]), kind, exif=exif, **options)


def deep():
    return Image.fromarray(np.asarray(scene(mode="L")).astype(np.uint16) * 257)


def sixteen_bits():
    return encoded(deep(), "PNG")


def transparent():
    picture = scene(mode="RGBA")
    picture.putpixel((0, 0), (0, 0, 0, 0))
    return encoded(picture, "PNG")


def bomb():
    """The header of a PNG of 30 000 x 30 000 pixels; decoded it would need 2.7 GB."""
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def animated():
    frames = [scene(), scene().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def large(size):
    return encoded(scene(size), "JPEG", quality=90)


# name: content, and the suffix that it is stored with
FINE = {
    "plain.jpg": (lambda: encoded(scene(), "JPEG", quality=95), ".jpg"),
    "grey.jpg": (lambda: encoded(scene(mode="L"), "JPEG", quality=95), ".jpg"),
    "lossless.png": (lambda: encoded(scene(), "PNG"), ".png"),
    "web.webp": (lambda: encoded(scene(), "WEBP", quality=95), ".webp"),
    "print.jpg": (lambda: encoded(scene(mode="CMYK"), "JPEG", quality=95), ".jpg"),
    "deep.png": (sixteen_bits, ".png"),
    "palette.gif": (lambda: encoded(scene(mode="P"), "GIF"), ".png"),
    "see_through.png": (transparent, ".png"),
    "turned_3.jpg": (lambda: turned(3, quality=95), ".jpg"),
    "turned_6.jpg": (lambda: turned(6, quality=95), ".jpg"),
    "turned_8.jpg": (lambda: turned(8, quality=95), ".jpg"),
    "turned_rgba.png": (lambda: turned(6, scene(mode="RGBA"), "PNG"), ".png"),
    "turned_deep.png": (lambda: turned(8, deep(), "PNG"), ".png"),
    "turned_scan.tiff": (lambda: turned(6, None, "TIFF"), ".png"),
    "misnamed.png": (lambda: encoded(scene(), "JPEG", quality=95), ".jpg"),
    "bitmap.bmp": (lambda: encoded(scene(), "BMP"), ".png"),
    "scan.tiff": (lambda: encoded(scene(), "TIFF"), ".png"),
    "wide.jpg": (lambda: large((20000, 64)), ".jpg"),
}
BAD = {
    "empty.jpg": (lambda: b"", "is empty: 0 bytes"),
    "cut.jpg": (lambda: FINE["plain.jpg"][0]()[:700], "cannot be read as a picture"),
    "cut.png": (lambda: FINE["lossless.png"][0]()[:150], "cannot be read as a picture"),
    "text.jpg": (lambda: b"<html>not found</html>", "not a picture that Pillow knows"),
    "dot.png": (lambda: encoded(Image.new("RGB", (1, 1)), "PNG"), "is 1x1, expected at least 32 pixels a side"),
    "bomb.png": (bomb, "has too many pixels"),
    "moves.gif": (animated, "is animated, 2 frames"),
    "floats.tiff": (lambda: encoded(Image.fromarray(np.zeros((64, 64), np.float32)), "TIFF"), "holds floats"),
}
