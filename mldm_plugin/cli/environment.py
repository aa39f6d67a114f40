"""What is installed, and whether it goes together."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mldm_plugin.requirements import installed, pip_install

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

CORE = ("torch", "torchvision", "lpips", "pluggy")
# Of `mldm start`, `train`, `sample` and `evaluate`, beside the core.
TO_TRAIN = ("diffusers", "accelerate", "peft", "transformers", "datasets", "tensorboard", "scipy")
PACKAGES = (*CORE, *TO_TRAIN, "matplotlib", "insightface", "pycocotools")
WEIGHTS = (
    *("mtcnn", "faceres", "mediapipe_palm", "mediapipe_hand", "mediapipe_person", "mediapipe_pose"),  # of `mldm start`
    *("mediapipe_selfie", "alexnet", "dlib_resnet", "vgg16"),  # of masks, of preset demo, of judges
)
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True)
class Conflict:
    """Things that do not go together, and the commands that mend it."""

    what: str
    mend: tuple[str, ...] = ()


def versions() -> Iterator[str]:
    """Python and the packages, a line each."""
    yield f"python {platform.python_version()}"
    for package in PACKAGES:
        yield f"{package} " + (installed(package) or f"not installed; {pip_install(package)}")
    present = [f"{runtime} {version}" for runtime in RUNTIMES if (version := installed(runtime))]
    yield " and ".join(present) or f"onnxruntime not installed; {pip_install('onnxruntime')}"


def devices() -> Iterator[str]:
    """GPUs with their memory, and what onnxruntime can run on."""
    try:
        import torch
    except Exception as error:  # a broken installation, told among the conflicts
        yield f"torch does not import: {_told(error)}"
    else:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for index in range(count):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            yield f"GPU {index}: {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        yield built + ("" if count else "; no GPU is to be seen, so everything runs on the CPU")
    yield from _providers()


def _providers() -> Iterator[str]:
    try:
        runtime = importlib.import_module("onnxruntime")
        yield "onnxruntime runs on " + ", ".join(runtime.get_available_providers())
    except ModuleNotFoundError:
        yield "onnxruntime is not installed"
    except Exception as error:  # a broken installation, told among the conflicts
        yield f"onnxruntime does not work: {_told(error)}"


def weights() -> Iterator[str]:
    """Which weights are on this machine, a line each."""
    from mldm_plugin.perceptual.weights import WEIGHT_FILES, locate

    for name in WEIGHT_FILES:
        try:
            yield f"{name}: {locate(name) or f'not here; mldm weights fetch {name}'}"
        except Exception as error:  # torch knows the cache, and is what is broken
            yield f"{name}: not known, {_told(error)}"


def plugins() -> Iterator[str]:
    """The installed plugins, and whether they load."""
    from mldm_plugin.cli.plugins import hooks_or_fault
    from mldm_plugin.plugins import installed_plugins

    names = installed_plugins()
    if not names:
        yield "none beside the built-in one"
    for name in names:
        try:
            yield f"{name}: {hooks_or_fault(name)}"
        except Exception as error:  # the built-in losses do not load either
            yield f"{name}: not known, {_told(error)}"


def conflicts() -> list[Conflict]:
    """What must be mended before anything is trusted."""
    found = (_two_runtimes(), _broken_runtime(), _unequal_torch(), *_that_do_not_import())
    return [conflict for conflict in found if conflict is not None]


def verdict(conflicts: Sequence[Conflict]) -> str:
    """Whether the two commands of the first day will run, in a line, and else what is missing."""
    if conflicts:
        return "not ready: mend what is in conflict, see above"
    if missing := [package for package in TO_TRAIN if installed(package) is None]:
        return f"missing: {', '.join(missing)} ({pip_install(*missing)})"
    from mldm_plugin.perceptual.weights import locate

    away = [name for name in WEIGHTS if locate(name) is None]
    later = f"; fetched on first use, or now by `mldm weights fetch {' '.join(away)}`" if away else ""
    return f'ready: mldm start PHOTOS --who "anna woman"{later}'


def _two_runtimes() -> Conflict | None:
    if not all(map(installed, RUNTIMES)):
        return None
    return Conflict(
        "onnxruntime and onnxruntime-gpu are both installed. They write the same files, so the one installed last "
        "is the one that runs, and removing either breaks the other. Remove both, then install one:",
        (
            "pip uninstall -y onnxruntime onnxruntime-gpu",
            "pip install onnxruntime-gpu  # without a GPU: onnxruntime",
        ),
    )


def _broken_runtime() -> Conflict | None:
    present = [runtime for runtime in RUNTIMES if installed(runtime)]
    if len(present) != 1:
        return None
    try:
        importlib.import_module("onnxruntime").get_available_providers()
    except Exception as error:
        return Conflict(
            f"{present[0]} is installed but does not work ({_told(error)}): files of it are missing, "
            "as after removing its sibling. Install it again:",
            (f"pip install --force-reinstall --no-deps {present[0]}",),
        )
    return None


def _unequal_torch() -> Conflict | None:
    torch, torchvision = installed("torch"), installed("torchvision")
    wanted = _required("torchvision", "torch")
    if torch is None or torchvision is None or wanted is None or wanted.contains(torch, prereleases=True):
        return None
    return Conflict(
        f"torchvision {torchvision} needs torch {wanted}, and torch is {torch}. Install a pair that belongs together:",
        ("pip install --upgrade torch torchvision",),
    )


def _required(package: str, dependency: str) -> SpecifierSet | None:
    """The versions of `dependency` that `package` asks for, or None where that is not known."""
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return None
    try:
        texts = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for requirement in map(Requirement, texts):
        if requirement.name == dependency and requirement.marker is None:
            return requirement.specifier
    return None


def _that_do_not_import() -> Iterator[Conflict]:
    """The first package of the core that is missing or broken, such as a torchvision built for another torch."""
    for package in ("torch", "torchvision", "lpips"):
        if installed(package) is None:
            yield Conflict(f"{package} is missing. Install what mldm-plugin needs:", (f"pip install {package}",))
            return
        try:
            importlib.import_module(package)
        except Exception as error:
            pair = "lpips" if package == "lpips" else "torch torchvision"
            yield Conflict(
                f"{package} does not import ({_told(error)}). Install again, from one source:",
                (f"pip install --force-reinstall {pair}",),
            )
            return


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
