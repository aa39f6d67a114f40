"""Presets: one YAML file holds one run. Nothing here needs torch."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mldm_plugin.errors import PluginError, PresetError, nearest

FOLDER = Path(__file__).parent / "presets"
if not FOLDER.is_dir():  # an editable install keeps presets/ beside the package
    FOLDER = Path(__file__).parent.parent / "presets"
_TIMESTEPS = 1000  # of Stable Diffusion's schedule
# Presets by task; those that our studies chose; a loss by itself beside the plain one; those of the Masked LDM paper,
# with what `mldm reproduce` trains; those of faces from attributes and masks.
GROUPS = {"task": FOLDER, **{name: FOLDER / name for name in ("study", "loss", "paper", "faces")}}


class LossSettings(BaseModel):
    """One entry of `losses:`. What is not named here are the loss's own options."""

    model_config = ConfigDict(extra="allow")

    weight: float = Field(ge=0, allow_inf_nan=False, description="λ of eq. 3")
    max_timestep: int | None = Field(
        default=100, ge=0, le=999, description="T, in Stable Diffusion's timesteps; null or 1000 is every timestep"
    )
    detach: bool = Field(default=False, description="log the value, give the network no gradient")
    balance: Literal["gradient"] | None = Field(
        default=None, description="gradient: weight is how strong the loss's gradient is beside the plain loss's"
    )

    @field_validator("max_timestep", mode="before")
    @classmethod
    def _every_timestep(cls, value: Any) -> Any:
        """All of the 1000 timesteps, which go from 0 to 999."""
        return None if value == _TIMESTEPS else value

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class BaseSettings(BaseModel):
    """`base:`, the weighting of the plain diffusion loss, with that weighting's own options."""

    model_config = ConfigDict(extra="allow")

    weighting: str = "none"

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class CheckSettings(BaseModel):
    """`checks:`, what the start-up checks do."""

    model_config = ConfigDict(extra="forbid")

    picture: Literal["stop", "warn"] = Field(
        default="stop", description="when decode(clean latents) does not resemble the picture"
    )


class Preset(BaseModel):
    """What a run optimises, and the trainer's flags that go with it."""

    model_config = ConfigDict(extra="forbid")

    combine: Literal["convex", "additive"] = "convex"
    base: BaseSettings = BaseSettings()
    target: Literal["image", "decoded"] = "image"
    vae: str = Field(
        default="model",
        description="what decodes: the model's own VAE, `taesd` (the tiny autoencoder of the model's family), or the "
        "folder or Hub name of an AutoencoderTiny",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of decoder and feature networks; auto is bfloat16 where the trainer's is a half"
    )
    decode_batch: int | None = Field(
        default=None,
        ge=1,
        description="how many pictures are decoded together; null is as many as have the pixels of one of 512²",
    )
    decode_checkpointing: bool = Field(
        default=False,
        description="compute the decoder's activations again in the backward pass instead of keeping them",
    )
    audit_steps: int | None = Field(
        default=None,
        ge=0,
        description="steps between two readings of the losses' gradients; null is 100 a loss, 0 never",
    )
    estimate: str = Field(
        default="one_step",
        description="of the clean latents that losses look at: one_step is the network's; direct-S is that after a "
        "step of S timesteps, by the noise that is known; ddim-K is that of K answers of the network, 1 to 4",
    )
    losses: dict[str, LossSettings] = {}
    checks: CheckSettings = CheckSettings()
    training: dict[str, dict[str, Any]] = Field(
        default={}, description="the name of a training script, without .py → flags that fill what is left unset"
    )

    @model_validator(mode="after")
    def _can_balance(self) -> Preset:
        for name, loss in self.losses.items():
            if loss.balance is not None and (loss.detach or self.audit_steps == 0):
                why = "detach: true" if loss.detach else "audit_steps: 0"
                raise ValueError(f"losses.{name}: {why} leaves no gradient to balance it by; leave one of them out")
        return self

    @field_validator("estimate")
    @classmethod
    def _known_estimate(cls, estimate: str) -> str:
        if not re.fullmatch(r"one_step|direct-[1-9][0-9]{0,2}|ddim-[1-4]", estimate):
            raise ValueError(
                "expected one_step, direct-S with S timesteps, as in direct-40, or ddim-K with K answers of the "
                f"network, 1 to 4, as in ddim-2; got {estimate!r}"
            )
        return estimate

    @property
    def direct_steps(self) -> int | None:
        """S of `direct-S`; None for another estimate."""
        return int(self.estimate.removeprefix("direct-")) if self.estimate.startswith("direct-") else None

    @property
    def answers(self) -> int:
        """K of `ddim-K`; 1 for another estimate."""
        return int(self.estimate.removeprefix("ddim-")) if self.estimate.startswith("ddim-") else 1

    @field_validator("training", mode="before")
    @classmethod
    def _by_script(cls, training: Any) -> Any:
        if not isinstance(training, dict):
            return training
        sections = {name: section or {} for name, section in training.items()}
        if loose := [f"{name}: {value}" for name, value in sections.items() if not isinstance(value, dict)]:
            raise ValueError(
                "expected the names of training scripts with their flags under them, as in "
                f"{{train_controlnet: {{learning_rate: 1.0e-5}}}}, got {', '.join(loose)}"
            )
        return sections

    def dump(self) -> str:
        """The preset as YAML that `load_preset` reads back."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def built_in_presets(group: str | None = None) -> dict[str, Path]:
    """Name → file of the presets that ship with the package.

    Args:
        group: of `GROUPS`; None takes all, in that order.
    """
    folders = [folder for name, folder in GROUPS.items() if group in (None, name)]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def task_preset(script: str) -> str:
    """The preset of the group `task` that has settings for a training script.

    DreamBooth's presets are for scripts with that word in their name; any other script gets another one if it can.

    Args:
        script: its name without .py.

    Raises:
        PresetError: there is none.
    """
    known = built_in_presets("task")
    found = [name for name in known if script in load_preset(name).training]
    if not found:
        raise PresetError(
            f"no built-in preset has settings for {script}.py: say which one with --preset, for example one of "
            f"{', '.join(known)} (mldm presets list)."
        )
    return min(found, key=lambda name: name.startswith("dreambooth") != ("dreambooth" in script))


def load_preset(
    name: str | Path | Preset,
    overrides: Sequence[str] = (),
    *,
    plugins: Any = None,
    check_training: Callable[[Any], list[str]] | None = None,
) -> Preset:
    """A preset by name or by path of a YAML file.

    Args:
        name: a built-in name, a name registered by a plugin, a path, or a preset to change or complete.
        overrides: `a.b=c` each, the value in YAML: `losses.face.weight=0.3`.
        plugins: the loaded `Plugins`. With it the options of every loss are checked too, and filled in with their
            defaults, so that the result says everything; without it only the preset's own keys are.
        check_training: what is wrong with a `training:` section, a line for each fault, to be told with the others.

    Raises:
        PresetError: unknown name, unreadable file, or any fault in the contents; all faults at once, those that an
            override brought with its name.
    """
    contents, source = (name.model_dump(), "given") if isinstance(name, Preset) else _read(name, plugins)
    changed = copy.deepcopy(contents)
    for override in overrides:
        _apply(changed, override)
    preset, faults = _examine(changed, plugins, check_training)
    if preset is None or faults:
        of_file = set(_examine(contents, plugins, check_training)[1]) if overrides else set(faults)
        raise PresetError(_account(faults, of_file, source, overrides))
    return preset


def _read(name: str | Path, plugins: Any) -> tuple[dict[str, Any], str]:
    path = find_preset(name, plugins)
    try:
        contents = yaml.load(path.read_text(encoding="utf-8"), Loader=NoDuplicates) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PresetError(f"preset {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(contents, dict):
        raise PresetError(f"preset {path} is a {type(contents).__name__}, expected keys such as losses: and training:.")
    return contents, str(path)


class NoDuplicates(yaml.SafeLoader):
    """YAML in which a key given twice is a fault, not a silent choice of the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return dict(super().construct_mapping(node, deep))


def find_preset(name: str | Path, plugins: Any = None) -> Path:
    """The file of a preset."""
    known = built_in_presets()
    if plugins is not None:
        known |= plugins.presets.entries
    if str(name) in known:
        return Path(known[str(name)])
    if Path(name).suffix in (".yaml", ".yml"):
        if Path(name).is_file():
            return Path(name)
        raise PresetError(f"preset file {name} does not exist.")
    raise PresetError(f"unknown preset {str(name)!r}: {nearest(str(name), known)} A file needs the ending .yaml.")


def _apply(contents: dict[str, Any], override: str) -> None:
    keys, separator, value = override.partition("=")
    if not separator or not keys:
        raise PresetError(f"--set {override!r} is not of the form a.b=c, for example losses.face.weight=0.3.")
    place = contents
    *parents, last = keys.strip().split(".")
    for key in parents:
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
        if not isinstance(place, dict):
            raise PresetError(f"--set {override!r}: {key} is {place!r} and holds no keys.")
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise PresetError(f"--set {override!r}: the value is not YAML: {error}") from error


def _examine(
    contents: dict[str, Any], plugins: Any, check_training: Callable[[Any], list[str]] | None
) -> tuple[Preset | None, list[str]]:
    """The preset, None where it is none, and all its faults."""
    faults: list[str] = []
    preset: Preset | None = None
    try:
        preset = Preset.model_validate(contents)
    except ValidationError as error:
        faults += describe_faults(error, _known_keys)
    faults += _check_room(contents if preset is None else preset.model_dump())
    if plugins is not None:
        faults += _fill_options(contents, preset, plugins)
    if check_training is not None:
        faults += check_training(contents.get("training"))
    return preset, faults


def _account(faults: list[str], of_file: set[str], source: str, overrides: Sequence[str]) -> str:
    """The faults of the file under its name, the others under the overrides that brought them."""
    own, brought = [f for f in faults if f in of_file], [f for f in faults if f not in of_file]
    lines = [f"preset {source} has {len(own)} fault(s):", *(f"  {fault}" for fault in own)] if own else []
    for fault in brought:
        where = fault.split(": ")[0]
        to_blame = [o for o in overrides if _related(where, o.partition("=")[0].strip())] or overrides
        lines.append(f"--set {' '.join(to_blame)}: {fault}")
    return "\n".join(lines)


def _related(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _check_room(contents: dict[str, Any]) -> list[str]:
    """With the convex mix the plain loss keeps 1 minus the sum of the weights, which must not be negative."""
    losses = contents.get("losses")
    entries = losses.values() if isinstance(losses, dict) else ()
    weights = [e.get("weight") for e in entries if isinstance(e, dict)]
    total = sum(w for w in weights if isinstance(w, (int, float)) and w > 0)
    if contents.get("combine", "convex") != "convex" or total <= 1 + 1e-9:
        return []
    return [
        f"losses: the weights sum to {total:g}, expected at most 1 with combine: convex, where the plain loss keeps 1 "
        "minus their sum; lower them or use combine: additive"
    ]


def _fill_options(contents: dict[str, Any], preset: Preset | None, plugins: Any) -> list[str]:
    """Check the options of every loss and of the base weighting; fill in defaults where `preset` is valid."""
    faults: list[str] = []
    losses = contents.get("losses")
    for name, settings in losses.items() if isinstance(losses, dict) else ():
        own = _own_options(settings, LossSettings)
        filled = _check_options(plugins.losses, name, own, f"losses.{name}", LossSettings, faults)
        if preset is not None:
            _extras(preset.losses[name]).update(filled)
    base = contents.get("base")
    weighting = base.get("weighting", "none") if isinstance(base, dict) else "none"
    if weighting not in ("none", None):
        own = _own_options(base, BaseSettings)
        filled = _check_options(plugins.base_weightings, weighting, own, "base", BaseSettings, faults)
        if preset is not None:
            _extras(preset.base).update(filled)
    elif own := _own_options(base, BaseSettings):
        faults.append(f"base: weighting none takes no options, got {', '.join(sorted(own))}")
    return faults


def _extras(settings: BaseModel) -> dict[str, Any]:
    extras = settings.model_extra
    return {} if extras is None else extras


def _own_options(settings: Any, model: type[BaseModel]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k not in model.model_fields} if isinstance(settings, dict) else {}


def _check_options(
    table: Any, name: str, options: Mapping[str, Any], where: str, model: type[BaseModel], faults: list[str]
) -> dict[str, Any]:
    from mldm_plugin.plugins import options_model

    try:
        options_of = options_model(table[name])
    except PluginError as error:
        faults.append(f"{where}: {error}")
        return {}
    if taken := sorted(set(options_of.model_fields) & set(model.model_fields)):
        faults.append(
            f"{where}: option {', '.join(taken)} of {name!r} has the name of a setting of every loss: rename it"
        )
        return {}
    known = [*options_of.model_fields, *model.model_fields]
    try:
        return options_of.model_validate(options).model_dump()
    except ValidationError as error:
        faults += [f"{where}.{fault}" for fault in describe_faults(error, lambda _: known)]
        return {}


def _known_keys(location: Sequence[int | str]) -> Iterable[str]:
    return CheckSettings.model_fields if location[:1] == ("checks",) else Preset.model_fields


def describe_faults(error: ValidationError, known_keys: Any) -> list[str]:
    """One line a fault: where, what was expected, what came, and the nearest known keys for an unknown one."""
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key; {nearest(str(fault['loc'][-1]), known_keys(fault['loc']))}")
        elif fault["type"] == "value_error":
            lines.append(f"{where}: {fault['ctx']['error']}".removeprefix(": "))
        elif fault["type"] == "missing":
            lines.append(f"{where}: is missing")
        else:
            lines.append(f"{where}: {fault['msg'][0].lower()}{fault['msg'][1:]}, got {fault['input']!r}")
    return lines
