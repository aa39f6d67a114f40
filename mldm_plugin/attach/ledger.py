"""The ledger: Pillow and torchvision write down what they do to a picture while a script runs.

`install` wraps the few functions through which a picture can change its frame. They do what they always did, to the
byte; beside it they keep a `Frame` in `Image.info`, which Pillow copies from picture to picture, and later on the
tensor (followed). No random numbers are drawn. An operation that is not known loses the frame, and an annotated picture
without a frame stops the run.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable
from typing import Any

import PIL.Image
from PIL import Image, ImageEnhance
from PIL.ExifTags import Base as Exif
from torch import Tensor

from mldm_plugin.attach.followed import FollowedTensor
from mldm_plugin.attach.frame import Frame, scaling, transposition

_KEY = "mldm_frame"  # in Image.info, and as attribute of a tensor
_EXIF = {"exif", "xmp", "XML:com.adobe.xmp"}  # where Pillow looks for the orientation
_serials = itertools.count()
_NAMED = 4
last_read: collections.deque[str] = collections.deque(maxlen=_NAMED)  # the files of the pictures opened last
installed = False


def install() -> None:
    """Wrap Pillow's and torchvision's functions; a second call does nothing."""
    global installed
    if installed:
        return
    installed = True
    _follow_pillow()
    _follow_torchvision()


def frame_of(picture: Any) -> Frame | None:
    """The frame of a Pillow picture or a tensor, if it has been followed."""
    frame = picture.info.get(_KEY) if isinstance(picture, Image.Image) else getattr(picture, _KEY, None)
    return frame if isinstance(frame, Frame) else None


def _put(picture: Any, frame: Frame | None) -> Any:
    if isinstance(picture, Image.Image):
        picture.info.pop(_KEY, None)
        if frame is not None:
            picture.info[_KEY] = frame
    elif isinstance(picture, Tensor) and frame is not None:
        if type(picture) is Tensor:
            return FollowedTensor.of(picture, frame)
        setattr(picture, _KEY, frame)
    return picture


def _current(picture: Image.Image) -> Frame | None:
    """The frame of a picture before an operation; lost if something changed its size unseen."""
    frame = frame_of(picture)
    if frame is not None and frame.size != picture.size and not frame.lost:
        return frame.lose("a change of size outside Pillow's resize, crop and transpose")
    return frame


def _wrap(owner: Any, name: str, after: Callable[..., Any]) -> None:
    """When `owner.name` has done its work, return `after(frame before, result, *arguments)`: it with its frame."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def followed(picture: Any, *args: Any, **kwargs: Any) -> Any:
        before = _current(picture) if isinstance(picture, Image.Image) else frame_of(picture)
        result = original(picture, *args, **kwargs)
        return result if before is None else after(before, result, *args, **kwargs)

    setattr(owner, name, followed)


def _follow_pillow() -> None:
    original_open = PIL.Image.open

    @functools.wraps(original_open)
    def open_(fp: Any, *args: Any, **kwargs: Any) -> Image.Image:
        picture = original_open(fp, *args, **kwargs)
        source = str(getattr(picture, "filename", "") or getattr(fp, "name", "") or "")
        # Where it is known without decoding: a PNG would be read to its end in search of it.
        orientation = int(picture.getexif().get(Exif.Orientation, 1) or 1) if _EXIF & picture.info.keys() else 1
        frame = Frame(source, picture.size, picture.size, orientation=orientation, serial=next(_serials))
        if source:
            last_read.append(source)
        return _put(picture, frame)

    PIL.Image.open = open_  # type: ignore[assignment]
    _wrap(Image.Image, "resize", _resized)
    _wrap(Image.Image, "crop", _cropped)
    _wrap(Image.Image, "transpose", _transposed)
    _wrap(Image.Image, "transform", _transformed)
    _wrap(Image.Image, "reduce", _reduced)
    _follow_thumbnail()
    _follow_colours()


def _resized(
    before: Frame, result: Image.Image, size: Any, resample: Any = None, box: Any = None, *_: Any, **__: Any
) -> Any:
    return _put(result, before.then(scaling(box or (0, 0, *before.size), result.size), result.size))


def _cropped(before: Frame, result: Image.Image, box: Any = None) -> Any:
    x0, y0 = (0, 0) if box is None else (round(box[0]), round(box[1]))
    return _put(result, before.then((1, 0, -x0, 0, 1, -y0), result.size))


def _transposed(before: Frame, result: Image.Image, method: int) -> Any:
    return _put(result, before.then(*transposition(method, before.size)))


def _transformed(before: Frame, result: Image.Image, *_: Any, **__: Any) -> Any:
    return _put(result, before.lose("Image.transform (a rotation or a distortion)"))


def _reduced(before: Frame, result: Image.Image, factor: Any, box: Any = None) -> Any:
    fx, fy = (factor, factor) if isinstance(factor, int) else factor
    x0, y0 = (0, 0) if box is None else box[:2]
    covered = (x0, y0, x0 + result.size[0] * fx, y0 + result.size[1] * fy)
    return _put(result, before.then(scaling(covered, result.size), result.size))


def _follow_thumbnail() -> None:
    """`thumbnail` changes the picture in place, and may decode it smaller to begin with."""
    original = Image.Image.thumbnail

    @functools.wraps(original)
    def thumbnail(picture: Image.Image, *args: Any, **kwargs: Any) -> None:
        before = _current(picture)
        original(picture, *args, **kwargs)
        if before is not None:
            _put(picture, before.then(scaling((0, 0, *before.size), picture.size), picture.size))

    Image.Image.thumbnail = thumbnail  # type: ignore[method-assign,assignment]


def _follow_colours() -> None:
    """Brightness blends with a blank picture, hue merges bands: the results carry no info of their own."""
    original_enhance, original_merge = ImageEnhance._Enhance.enhance, PIL.Image.merge

    @functools.wraps(original_enhance)
    def enhance(enhancer: Any, factor: float) -> Image.Image:
        return _put(original_enhance(enhancer, factor), frame_of(enhancer.image))

    @functools.wraps(original_merge)
    def merge(mode: str, bands: Any) -> Image.Image:
        frames = {frame_of(band) for band in bands} - {None}
        return _put(original_merge(mode, bands), frames.pop() if len(frames) == 1 else None)

    ImageEnhance._Enhance.enhance = enhance  # type: ignore[method-assign,assignment]
    PIL.Image.merge = merge


def _follow_torchvision() -> None:
    """From picture to tensor, and the steps on tensors that leave the frame alone."""
    from torchvision.transforms import functional as F
    from torchvision.transforms import v2

    def carried(before: Frame, result: Any, *_: Any, **__: Any) -> Any:
        return _put(result, before)

    for name in ("to_tensor", "pil_to_tensor", "convert_image_dtype", "normalize"):
        _wrap(F, name, carried)
    for transform in (v2.ToImage, v2.PILToTensor, v2.ToDtype, v2.Normalize, v2.ToPureTensor):
        _follow_forward(transform)
    if hasattr(v2.Transform, "_call_kernel"):  # without it those pictures lose their frame, and are refused
        _follow_kernels(v2.Transform)


def _follow_kernels(transform: Any) -> None:
    """v2's transforms of its own pictures, `tv_tensors.Image`: done with an ordinary tensor, which is followed."""
    from torchvision import tv_tensors

    original = transform._call_kernel

    @functools.wraps(original)
    def call_kernel(self: Any, functional: Any, picture: Any, *args: Any, **kwargs: Any) -> Any:
        frame = frame_of(picture)
        if frame is None or not isinstance(picture, tv_tensors.Image):
            return original(self, functional, picture, *args, **kwargs)
        followed = FollowedTensor.of(picture.as_subclass(Tensor), frame)
        moved = original(self, functional, followed, *args, **kwargs)
        return _put(tv_tensors.wrap(moved.as_subclass(Tensor), like=picture), frame_of(moved))

    transform._call_kernel = call_kernel


def _follow_forward(transform: Any) -> None:
    original = transform.forward

    @functools.wraps(original)
    def forward(self: Any, *inputs: Any) -> Any:
        result = original(self, *inputs)
        if len(inputs) == 1 and (frame := frame_of(inputs[0])) is not None:
            return _put(result, frame)
        return result

    transform.forward = forward
