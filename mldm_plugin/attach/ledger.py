"""The ledger: Pillow, numpy and torchvision write down what they do to a picture while a script runs.

`install` wraps the few functions through which a picture can change its frame. They do what they always did, to the
byte; beside it they keep a `Frame` in `Image.info`, which Pillow copies from picture to picture, and later on the
array and the tensor (followed_array, followed). No random numbers are drawn. An operation that is not known loses the
frame, and an annotated picture without a frame stops the run.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL import Image, ImageEnhance
from PIL.ExifTags import Base as Exif
from torch import Tensor
from torch.jit._builtins import _find_builtin, _register_builtin
from torch.utils._device import _device_constructors

from mldm_plugin.attach.followed import FollowedTensor
from mldm_plugin.attach.followed_array import FollowedArray
from mldm_plugin.attach.frame import Frame, scaling, transposition
from mldm_plugin.attach.planes import Planes

_KEY = "mldm_frame"  # in Image.info
_COLOURS = (3, 4)
_COPYING = ("array", "tensor")
_EXIF = {"exif", "xmp", "XML:com.adobe.xmp"}  # where Pillow looks for the orientation
_serials = itertools.count()
_NAMED = 4
last_read: collections.deque[str] = collections.deque(maxlen=_NAMED)  # the files of the pictures opened last
_replaced: list[tuple[Any, str, Any]] = []  # whose, its name, and what it was; None where it was inherited


def installed() -> bool:
    return bool(_replaced)


def install() -> None:
    """Wrap Pillow's, numpy's, torch's and torchvision's functions; a second call does nothing."""
    if _replaced:
        return
    _follow_pillow()
    _follow_arrays()
    _follow_torchvision()


def uninstall() -> None:
    """Put back what was there; pictures that were read until now keep their frames, and are followed no further."""
    while _replaced:
        owner, name, was = _replaced.pop()
        if was is None:
            delattr(owner, name)
        else:
            setattr(owner, name, was)


def _replace(owner: Any, name: str, made: Any) -> None:
    _replaced.append((owner, name, vars(owner).get(name)))
    setattr(owner, name, made)


def frame_of(picture: Any) -> Frame | None:
    """The frame of a picture of Pillow, an array or a tensor, if it has been followed."""
    if isinstance(picture, Image.Image):
        frame = picture.info.get(_KEY)
        return frame if isinstance(frame, Frame) else None
    planes = getattr(picture, "mldm_planes", None)
    return planes.frame() if isinstance(planes, Planes) else None


def _put(picture: Any, frame: Frame | None) -> Any:
    if isinstance(picture, Image.Image):
        picture.info.pop(_KEY, None)
        if frame is not None:
            picture.info[_KEY] = frame
    elif isinstance(picture, Tensor) and frame is not None:
        if type(picture) is Tensor:
            return FollowedTensor.of(picture, frame)
        picture.mldm_planes = Planes.of(frame, picture.shape)  # type: ignore[attr-defined]
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
    def followed(*args: Any, **kwargs: Any) -> Any:
        picture = args[0] if args else None
        before = _current(picture) if isinstance(picture, Image.Image) else frame_of(picture)
        result = original(*args, **kwargs)
        return result if before is None else after(before, result, *args[1:], **kwargs)

    _replace(owner, name, followed)


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

    _replace(PIL.Image, "open", open_)
    _wrap(Image.Image, "resize", _resized)
    _wrap(Image.Image, "crop", _cropped)
    _wrap(Image.Image, "transpose", _transposed)
    _wrap(Image.Image, "transform", _transformed)
    _wrap(Image.Image, "reduce", _reduced)
    _follow_thumbnail()
    _follow_paste()
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

    _replace(Image.Image, "thumbnail", thumbnail)


def _follow_paste() -> None:
    """`paste` changes the picture in place: what shows another picture, or itself elsewhere, is lost."""
    original = Image.Image.paste

    @functools.wraps(original)
    def paste(picture: Image.Image, im: Any, box: Any = None, *args: Any, **kwargs: Any) -> None:
        original(picture, im, box, *args, **kwargs)
        before, pasted = frame_of(picture), frame_of(im) if isinstance(im, Image.Image) else None
        if before is not None and pasted is not None:
            left, top = box[:2] if isinstance(box, (tuple, list)) else (0, 0)
            there = before.then((1, 0, -left, 0, 1, -top), pasted.size)
            if (pasted.serial, pasted.source, pasted.affine) != (there.serial, there.source, there.affine):
                _put(picture, before.lose("Image.paste of another picture"))

    _replace(Image.Image, "paste", paste)


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

    _replace(ImageEnhance._Enhance, "enhance", enhance)
    _replace(PIL.Image, "merge", merge)


def _follow_arrays() -> None:
    """From picture to array, from array to tensor, and back to a picture."""
    _device_constructors()  # keeps torch's functions as they are: it is by these that `with torch.device` knows them
    as_tensor = torch.as_tensor
    for owner, names in ((np, ("array", "asarray", "ascontiguousarray")), (torch, ("tensor", "as_tensor"))):
        for name in names:
            _follow_source(owner, name)
    _follow_source(torch, "from_numpy", compiled=as_tensor)  # torch.compile knows from_numpy by its name alone
    for name in ("zeros", "ones", "full"):
        _follow_blank(name)
    original = PIL.Image.fromarray

    @functools.wraps(original)
    def fromarray(obj: Any, *args: Any, **kwargs: Any) -> Image.Image:
        picture, planes = original(obj, *args, **kwargs), _planes_of(obj)
        return picture if planes is None or (planes.rows, planes.columns) != (0, 1) else _put(picture, planes.frame())

    _replace(PIL.Image, "fromarray", fromarray)


def _planes_of(source: Any) -> Planes | None:
    """What is known of the pictures in an array or a tensor, or of a picture as the array that Pillow makes of it."""
    if isinstance(source, Image.Image):
        frame = _current(source)
        shape = (source.height, source.width, *([len(source.getbands())] if len(source.getbands()) > 1 else []))
        return None if frame is None else Planes.of(frame, shape, 0, 1)
    return getattr(source, "mldm_planes", None) if isinstance(source, (FollowedArray, FollowedTensor)) else None


def _follow_source(owner: Any, name: str, compiled: Callable[..., Any] | None = None) -> None:
    """`numpy.array(picture)`, `torch.tensor(array)` and the like: what comes out has the frames of what goes in."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def followed(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return (compiled or original)(*args, **kwargs)
        result = original(*args, **kwargs)
        planes = _planes_of(args[0]) if args else None
        if planes is None or (isinstance(result, Tensor) and result.requires_grad):  # a leaf remains one
            return result
        if name in _COPYING and kwargs.get("copy", True):
            planes = planes.copied()
        kind: Any = FollowedArray if isinstance(result, np.ndarray) else FollowedTensor
        return kind.of(result, planes.checked(result.shape, f"{owner.__name__}.{name}"))

    followed.__module__, followed.__qualname__ = owner.__name__, name  # where pickle looks for it
    _replace(owner, name, followed)
    if (operator := _find_builtin(original)) is not None:  # TorchScript knows functions by what they are
        _register_builtin(followed, operator)


def _follow_blank(name: str) -> None:
    """An array shaped like a picture in colours, into which one may be pasted."""
    original = getattr(np, name)

    @functools.wraps(original)
    def blank(*args: Any, **kwargs: Any) -> np.ndarray:
        result = original(*args, **kwargs)
        if torch.compiler.is_compiling() or type(result) is not np.ndarray:
            return result
        return FollowedArray.of(result) if result.ndim == 3 and result.shape[2] in _COLOURS else result

    _replace(np, name, blank)


def _follow_torchvision() -> None:
    """From picture to tensor, and the steps on tensors that leave the frame alone."""
    from torchvision.transforms import functional as F
    from torchvision.transforms import v2

    def carried(before: Frame, result: Any, *_: Any, **__: Any) -> Any:
        return _put(result, before)

    for name in ("convert_image_dtype", "normalize"):
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
        if not isinstance(moved, Tensor):  # several, as of FiveCrop
            return moved
        return _put(tv_tensors.wrap(moved.as_subclass(Tensor), like=picture), frame_of(moved))

    _replace(transform, "_call_kernel", call_kernel)


def _kept(before: Any, after: Any) -> Any:
    frame = frame_of(before)
    return after if frame is None else _put(after, frame)


def _follow_forward(transform: Any) -> None:
    original = transform.forward

    @functools.wraps(original)
    def forward(self: Any, *inputs: Any) -> Any:
        result = original(self, *inputs)
        if len(inputs) == 1:
            return _kept(inputs[0], result)
        return tuple(_kept(*pair) for pair in zip(inputs, result, strict=True))

    _replace(transform, "forward", forward)
