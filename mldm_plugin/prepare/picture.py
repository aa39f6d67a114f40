"""Opening a picture of somebody's collection: what it is, whether it can be trained on, and how it is stored."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageOps
from PIL.ExifTags import Base as Exif

from mldm_plugin.prepare.source import RejectedError
from mldm_plugin.requirements import pip_install

LEAST_SIDE = 32  # pixels; chosen: half of the smallest latent that the U-Net of SD 1.5 takes whole
QUALITY = 95  # of JPEG written anew, chosen: no loss that training would see
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp"}
_KEPT_MODES = ("RGB", "L")
_LOSSY = ("JPEG", "MPO", "HEIF")
_HEIF_READER = "pillow-heif"  # no dependency, for its wheels hold x265, which is under the GPL
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1")  # ISO/IEC 23008-12, brands of a still picture
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class Picture:
    """A picture file, upright, RGB.

    A file that every trainer reads alike (RGB or grey, JPEG, PNG or WebP, upright, opaque) is stored byte for byte;
    any other is converted: CMYK, palettes and 16 bits to RGB, transparency onto white, the EXIF orientation applied.

    Raises:
        RejectedError: it cannot be read, has more than one frame or too many pixels (what Pillow calls a
            decompression bomb), or is too small.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise RejectedError("is a pipe or a device, which is not read")
        try:
            self._content = path.read_bytes()
        except OSError as error:
            raise RejectedError(f"cannot be read: {error.strerror}") from error
        if not self._content:
            raise RejectedError("is empty: 0 bytes")
        with _reading():
            self._header = _open(self._content)
            self.stored_size = self._header.size  # before the EXIF orientation is applied
            turned = int(self._header.getexif().get(Exif.Orientation, 1) or 1)
            self._orientation = 1 if self._header.format == "TIFF" else turned  # Pillow turns TIFF itself
            self._refuse_unfit()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), upright."""
        width, height = self.stored_size
        return (height, width) if self._orientation in (5, 6, 7, 8) else (width, height)

    @property
    def turned(self) -> bool:
        """Whether its EXIF orientation turns or mirrors it."""
        return self._orientation not in (0, 1)

    def rgb(self) -> PIL.Image.Image:
        """The upright picture, mode RGB."""
        with _reading():
            return self._rgb

    def stored(self) -> tuple[bytes, str]:
        """The content of the file that goes into the data set, decoded once to the end, and its suffix."""
        with _reading():
            return self._stored()

    def _stored(self) -> tuple[bytes, str]:
        header = self._header
        plain = header.mode in _KEPT_MODES and not self._transparent() and not self.turned
        if plain and header.format in SUFFIXES:
            self._decode_to_the_end()
            return self._content, SUFFIXES[header.format]
        lossy = header.format in _LOSSY
        stream = io.BytesIO()
        if lossy:
            self._rgb.save(stream, "JPEG", quality=QUALITY, subsampling=0)
        else:
            self._rgb.save(stream, "PNG")
        return stream.getvalue(), ".jpg" if lossy else ".png"

    def _refuse_unfit(self) -> None:
        opened = self._header
        frames = getattr(opened, "n_frames", 1)
        if frames > 1 and opened.format != "MPO":  # a camera's second picture, of the same view
            raise RejectedError(f"is animated, {frames} frames: save the one you want as a picture of its own")
        if min(opened.size) < LEAST_SIDE:
            raise RejectedError(f"is {opened.width}x{opened.height}, expected at least {LEAST_SIDE} pixels a side")
        if opened.mode == "F":
            raise RejectedError("holds floats, expected a picture of 8 or 16 bits")

    def _transparent(self) -> bool:
        return self._header.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in self._header.info

    def _decode_to_the_end(self) -> None:
        """Raise RejectedError for a truncated file; JPEG is decoded at an eighth of its size, which reads it all."""
        width, height = self.stored_size
        self._header.draft(None, (max(width // 8, 1), max(height // 8, 1)))
        _load(self._header)

    @cached_property
    def _rgb(self) -> PIL.Image.Image:
        opened = decode(self._content)
        if self.turned:
            opened = ImageOps.exif_transpose(opened)
        if opened.mode in _SIXTEEN_BITS:
            # Pillow's own conversion clips at 255.
            values = np.asarray(opened).astype(np.int64)
            opened = PIL.Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
        elif self._transparent():
            rgba = opened.convert("RGBA")
            opened = PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, "white"), rgba)
        rgb = opened if opened.mode == "RGB" else _without_profile(opened.convert("RGB"))
        if rgb.size != self.size:
            raise RejectedError(f"is {rgb.width}x{rgb.height}, its header says {self.size[0]}x{self.size[1]}")
        return rgb


def _without_profile(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A picture whose colours are no longer what its ICC profile is for."""
    picture.info.pop("icc_profile", None)
    return picture


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Damaged files raise almost anything in Pillow; whatever it is, it rejects the picture and not the run."""
    try:
        yield
    except RejectedError:
        raise
    except Exception as error:
        raise _unreadable(error) from error


def decode(content: bytes) -> PIL.Image.Image:
    """The picture in a file's content, its pixels decoded.

    Raises:
        RejectedError: it is none, is not whole, or has too many pixels.
    """
    opened = _open(content)
    _load(opened)
    return opened


def _open(content: bytes) -> PIL.Image.Image:
    """Opened by its header."""
    heif = content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS
    if heif:
        _register_heif()
    with warnings.catch_warnings():
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning)  # Pillow's about odd metadata
        try:
            opened = PIL.Image.open(io.BytesIO(content))
            opened.getexif()
        except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
            raise RejectedError(f"has too many pixels: {error}") from error
        except Exception as error:
            if heif and isinstance(error, PIL.UnidentifiedImageError):
                raise RejectedError(f"is HEIC, an iPhone's: {pip_install(_HEIF_READER)}, or save it as JPEG") from error
            raise _unreadable(error) from error
    return opened


def _register_heif() -> None:
    """Let Pillow read HEIC where pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


def _load(opened: PIL.Image.Image) -> None:
    try:
        opened.load()
    except Exception as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> RejectedError:
    message = str(error) or type(error).__name__
    if isinstance(error, PIL.UnidentifiedImageError):
        message = "not a picture that Pillow knows"
    return RejectedError(f"cannot be read as a picture: {message}")
