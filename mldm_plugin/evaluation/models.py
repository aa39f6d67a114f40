"""The models that are compared: what `--model NAME=WHAT` says, and the pipeline or the pictures that it stands for."""

from __future__ import annotations

import difflib
import glob
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from mldm_plugin.errors import MldmError, nearest

log = logging.getLogger(__name__)

Kind = Literal["pipeline", "conditional", "lora", "controlnet", "pictures"]
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
WEIGHTS = (".safetensors", ".bin")
LORA = "pytorch_lora_weights.safetensors"
SIDE, LATENTS = 512, 128  # of pictures where nothing is known; of latents, FluxPipeline.default_sample_size
A_MODEL = (
    "A model is a pipeline (a folder with model_index.json, or a name on the Hub), a LoRA (a folder with "
    f"{LORA}, or a .safetensors file), a ControlNet (a folder with its config.json), or a folder of pictures."
)
STEP_OF = "a step of a run of train_conditional_ldm.py is drawn with the autoencoder of the finished run"
CONDITIONAL = "ConditionalLDMPipeline"  # what model_index.json says of a model of train_conditional_ldm.py
RESERVED = "photographs"  # what the report calls those of --data
SAMPLERS = {"dpm++": "DPMSolverMultistepScheduler", "ddim": "DDIMScheduler"}  # others by diffusers' own names


@dataclass(frozen=True)
class Run:
    """One pipeline, one adapter on a base, or one folder of pictures.

    Args:
        what: as it was given.
        kind: what it is.
        base: the pipeline that a LoRA or ControlNet goes with.
    """

    what: str
    kind: Kind
    base: str | None = None

    @cached_property
    def digest(self) -> str:
        """Of all files that it stands for on this disk; empty for a name on the Hub."""
        found, kinds = hashlib.sha256(), ((self.what, self.kind), (self.base, "pipeline"))
        paths = [(Path(one), kind) for one, kind in kinds if one is not None and Path(one).exists()]
        for path, kind in paths:
            for file in _files_that_count(path, kind):
                found.update(f"{file.name} {file.stat().st_size} ".encode())
                with file.open("rb") as stream:
                    for chunk in iter(partial(stream.read, 1 << 20), b""):
                        found.update(chunk)
        return found.hexdigest()[:16] if paths else ""

    @property
    def takes_hints(self) -> bool:
        """Whether it is a ControlNet that was trained with hints, as far as its run folder says."""
        return self.kind == "controlnet" and argument_of(Path(self.what), "conditioning") != "none"

    @property
    def folder(self) -> Path:
        """Where its weights lie."""
        return Path(self.what).parent if Path(self.what).is_file() else Path(self.what)

    @property
    def reads_conditions(self) -> bool:
        """Whether it draws from conditions, alone or beside text."""
        from mldm_plugin.conditions.beside_text import has_conditions

        return self.kind == "conditional" or (self.kind in ("lora", "controlnet") and has_conditions(self.folder))

    @property
    def never_without(self) -> bool:
        """Whether its conditions were in every picture that it was trained on, as far as its run folder says: what it
        draws without them, or guided away from their absence, it has not learnt."""
        return self.reads_conditions and argument_of(self.folder, "condition_dropout") == 0

    @cached_property
    def seed(self) -> int | None:
        """That it was trained from, where its run folder says so."""
        return argument_of(Path(self.what), "seed")


@dataclass
class Model:
    """A column of the comparison: one run, or several of the same arm (seeds)."""

    name: str
    runs: list[Run] = field(default_factory=list)

    def has_seeds_of(self, other: Model) -> bool:
        """Whether its runs and the other's were trained from the same seeds, one by one."""
        seeds = [run.seed for run in self.runs]
        return None not in seeds and seeds == [run.seed for run in other.runs]


def parse_models(given: Sequence[str], base: str | None) -> list[Model]:
    """The models of `NAME=WHAT`, in order; the same name again, or a pattern with * adds runs to an arm.

    Raises:
        MldmError: a name that is no name, nothing behind it, an adapter without a base.
    """
    models: dict[str, Model] = {}
    for text in given:
        name, _, what = text.partition("=")
        if not re.fullmatch(r"\w[\w.+-]*", name) or not what or name == RESERVED:
            raise MldmError(
                f"--model {text}: expected NAME=WHAT, the name of letters, digits, . + - and _, not {RESERVED}."
            )
        found = sorted(glob.glob(what)) if glob.has_magic(what) else [what]  # noqa: PTH207 - may be absolute
        if not found:
            raise MldmError(f"--model {text}: nothing is called {what}.")
        models.setdefault(name, Model(name)).runs += [_run(one, base) for one in found]
    return list(models.values())


def _run(what: str, base: str | None) -> Run:
    path = Path(what)
    if path.is_file() and path.suffix == ".safetensors":
        return Run(what, "lora", _base_of(path.parent, base, what))
    if not path.is_dir():
        if path.exists() or path.is_absolute() or what.startswith(".") or what.count("/") > 1:
            raise MldmError(
                f"{what} is {'no .safetensors file' if path.exists() else 'not here'}. {A_MODEL}{meant(path)}"
            )
        return Run(what, "pipeline")  # a name on the Hub
    if (path / "model_index.json").is_file():
        return Run(what, "conditional" if class_of(path, "model_index.json") == CONDITIONAL else "pipeline")
    if (path / LORA).is_file():
        return Run(what, "lora", _base_of(path, base, what))
    if is_controlnet(path):
        return Run(what, "controlnet", _base_of(path, base, what))
    if _has_parts(path):
        return Run(what, "conditional", _finished_run(path))
    if any(file.suffix.lower() in PICTURES for file in path.iterdir()):
        return Run(what, "pictures")
    raise MldmError(f"{what} is a folder with none of what was looked for. {A_MODEL}{meant(path)}")


def meant(path: Path) -> str:
    """Runs in a folder of runs, or a name beside it that is like it."""
    runs = sorted({file.parent for pattern in (LORA, f"*/{LORA}", f"runs/*/{LORA}") for file in path.glob(pattern)})
    if runs:
        return f" Did you mean {' or '.join(map(str, runs))}?"
    try:
        near = difflib.get_close_matches(path.name, [one.name for one in path.parent.iterdir() if one != path], n=1)
    except OSError:
        near = []
    return f" Did you mean {path.with_name(near[0])}?" if near else ""


def pictures_in(run: Run) -> list[Path]:
    """The files of a folder of pictures, by name."""
    files = Path(run.what).iterdir()
    return sorted(file for file in files if file.suffix.lower() in PICTURES and not file.name.startswith("."))


def is_trained(folder: Path) -> bool:
    """Whether a folder holds a LoRA, a ControlNet, or a model that draws from conditions, alone or as a pipeline."""
    return (folder / LORA).is_file() or is_controlnet(folder) or _has_parts(folder)


def is_controlnet(folder: Path) -> bool:
    """Whether a folder holds a ControlNet of one of diffusers' families, as `FluxControlNetModel`."""
    return (class_of(folder) or "").endswith("ControlNetModel")


def _has_parts(folder: Path) -> bool:
    """Whether a U-Net and encoders of conditions lie here, as a checkpoint and a pipeline of them keep both."""
    return all((folder / part / "config.json").is_file() for part in ("unet", "conditions"))


def _finished_run(folder: Path) -> str:
    """The pipeline that RUN/checkpoint-N/model became a part of.

    Raises:
        MldmError: there is none.
    """
    for place in folder.absolute().parents[:2]:
        if class_of(place, "model_index.json") == CONDITIONAL:
            return str(place)
    raise MldmError(f"{folder} lies in no finished run (model_index.json): {STEP_OF}.")


def class_of(folder: Path, file: str = "config.json") -> str | None:
    """What a configuration says that it is of; custom pipelines say their module, too."""
    try:
        named = json.loads((folder / file).read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    named = named[-1] if isinstance(named, list) and named else named
    return named if isinstance(named, str) else None


def _base_of(folder: Path, base: str | None, what: str) -> str:
    """The base that was given, or the one that a run of ours was started from."""
    if base is not None:
        return base
    if (found := argument_of(folder, "pretrained_model_name_or_path")) is not None:
        return found
    raise MldmError(f"{what} is an adapter: say with --base what pipeline it was trained on.")


def argument_of(folder: Path, name: str) -> Any:
    """What a run was started with, by its folder or one inside it; None where nothing says it."""
    for place in (folder, folder.parent, folder.parent.parent):  # RUN/checkpoint-N/controlnet lies inside its run
        try:
            return json.loads((place / "arguments.json").read_text(encoding="utf-8"))[name]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _files_that_count(folder: Path, kind: str) -> list[Path]:
    """Of a folder those of its kind, of a file itself, and the conditions that lie beside it."""
    if folder.is_file():
        return [folder, *sorted((folder.parent / "conditions").glob("*"))]
    suffixes = PICTURES if kind == "pictures" else (".json", *WEIGHTS)
    inside: Iterable[Path] = folder.rglob("*")
    if kind in ("pictures", "lora"):
        inside = itertools.chain(folder.iterdir(), (folder / "conditions").glob("*"))
    return sorted(
        file
        for file in inside
        if file.suffix.lower() in suffixes and file.is_file() and "checkpoint-" not in str(file.relative_to(folder))
    )


def load_pipeline(run: Run, device: Any, dtype: Any) -> Any:
    """The pipeline of a run with its adapter, whichever class of diffusers it is.

    Raises:
        MldmError: it does not load, or the adapter changes nothing in it.
    """
    import diffusers
    import transformers
    from diffusers import AutoPipelineForText2Image, DiffusionPipeline
    from diffusers.utils import logging as speaking

    from mldm_plugin.conditions.beside_text import BesideText, read_conditions
    from mldm_plugin.conditions.pipeline import ConditionalLDMPipeline, put_step

    speaking.set_verbosity_error()  # it speaks of safety checkers and of text encoders without LoRA
    speaking.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        precision = {_dtype_argument(): dtype}
        options = _accepted(run.base or run.what, {**precision, "safety_checker": None})
        kind = ConditionalLDMPipeline if run.kind == "conditional" else DiffusionPipeline
        pipeline = kind.from_pretrained(run.base or run.what, **options)
        if run.kind == "controlnet":
            network = getattr(diffusers, class_of(Path(run.what)) or "")
            controlnet = network.from_pretrained(run.what, **precision)
            pipeline = AutoPipelineForText2Image.from_pipe(pipeline, controlnet=controlnet)
        elif run.kind == "conditional" and run.base is not None:
            put_step(pipeline, Path(run.what))
        elif run.kind == "lora":
            _fuse_lora(pipeline, run)
        if run.kind != "conditional" and run.reads_conditions:
            BesideText(pipeline, read_conditions(run.folder))
    except MldmError:
        raise
    except Exception as error:  # whatever diffusers, transformers or peft say of files that are not theirs
        first_line = next(iter(str(error).splitlines()), "")
        there = (
            "does not load" if Path(run.what).exists() else "is no folder here, and as a name on the Hub does not load"
        )
        raise MldmError(f"{run.what} {there} ({type(error).__name__}: {first_line[:300]})") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _fuse_lora(pipeline: Any, run: Run) -> None:
    """Add a LoRA to the weights, in a fifth of the time on a CPU that it takes beside them."""
    path = Path(run.what)
    pipeline.load_lora_weights(str(run.folder), weight_name=path.name if path.is_file() else None)
    _require_whole(pipeline, run)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def _require_whole(pipeline: Any, run: Run) -> None:
    """Raises MldmError for a LoRA of which the pipeline took nothing, or less than there is.

    Formats cut tensors in pieces while they are converted, never together, so fewer than in the file are too few.
    """
    from safetensors import safe_open

    path = Path(run.what)
    files = [path] if path.is_file() else [path / "pytorch_lora_weights.safetensors"]
    given = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            given += sum(".alpha" not in name and "dora_scale" not in name for name in opened.keys())  # noqa: SIM118
    parts = [part for part in pipeline.components.values() if hasattr(part, "named_parameters")]
    taken = sum("lora_" in name for part in parts for name, _ in part.named_parameters())
    if taken < given:
        raise MldmError(f"{run.what} fits {run.base} in part: {taken} of its {given} tensors were taken.")


def _dtype_argument() -> str:
    """What diffusers calls the precision: `torch_dtype`, from 0.42 on `dtype`."""
    from importlib.metadata import version

    return "dtype" if tuple(map(int, version("diffusers").split(".")[:2])) >= (0, 42) else "torch_dtype"


def _accepted(pipeline: str, options: dict[str, Any]) -> dict[str, Any]:
    """Without `safety_checker` for a pipeline that has none: diffusers warns of it."""
    try:
        index = json.loads((Path(pipeline) / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return options
    return {name: value for name, value in options.items() if name != "safety_checker" or name in index}


def side_of(pipeline: str) -> int:
    """The side in pixels that a pipeline draws unasked, by its configurations, in a folder or on the Hub.

    Flux and others whose transformer names no size draw `LATENTS` squared latents, as their classes say; a VAE that
    does not tell its levels, as Qwen-Image's, makes 8 pixels of each.
    """
    from diffusers import DiffusionPipeline, UNet2DConditionModel

    try:
        index = DiffusionPipeline.load_config(pipeline)
        network = "unet" if "unet" in index else "transformer"
        configs = [UNet2DConditionModel.load_config(pipeline, subfolder=part) for part in (network, "vae")]
        size, channels = configs[0].get("sample_size"), configs[1].get("block_out_channels")
        return int(size if isinstance(size, int) else LATENTS) * (2 ** (len(channels) - 1) if channels else 8)
    except (OSError, ValueError, TypeError, AttributeError) as error:  # no such name, or the Hub is not reached
        what = f"({type(error).__name__}): {SIDE} pixels are taken, or those of --resolution"
        log.warning(f"{pipeline} does not say what size it draws {what}")
        return SIDE


def set_sampler(pipeline: Any, name: str) -> str:
    """Give a diffusion pipeline a sampler by its name, and say which class it is; flow matching keeps its own.

    Raises:
        MldmError: diffusers has no such scheduler, or it does not fit.
    """
    import diffusers

    own = type(pipeline.scheduler).__name__
    if "FlowMatch" in own:
        return own
    kind = getattr(diffusers, SAMPLERS.get(name, name), None)
    if kind is None or not hasattr(kind, "from_config"):
        known = [*SAMPLERS, *(n for n in dir(diffusers) if n.endswith("Scheduler"))]
        raise MldmError(f"--sampler {name}: {nearest(name, known)}")
    # Latents are not pixels: what DDPM's default would clip to [-1, 1] must not be.
    pipeline.scheduler = kind.from_config({**pipeline.scheduler.config, "clip_sample": False})
    return kind.__name__
