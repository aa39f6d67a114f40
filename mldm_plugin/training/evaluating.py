"""`--evaluate_steps`: photographs that the network is not trained on, looked at in one step while it is trained."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from torch import Tensor, nn

from mldm_plugin.data.batch import Example
from mldm_plugin.data.load import HELD_OUT, trained_part
from mldm_plugin.errors import DataError
from mldm_plugin.evaluation.cases import Photographs, cases_of_photographs, open_photographs
from mldm_plugin.evaluation.judges import choose_judges, networks_in
from mldm_plugin.evaluation.one_step import TIMESTEPS, OneStep
from mldm_plugin.evaluation.quantities import QUANTITIES
from mldm_plugin.preset import Preset
from mldm_plugin.training import generators
from mldm_plugin.training.agreement import together
from mldm_plugin.training.evaluation_file import EvaluationFile
from mldm_plugin.training.flags import TrainerFlags
from mldm_plugin.training.trainer import Trainer

log = get_logger(__name__)


class Evaluating:
    """Looks at the same photographs at the same timesteps and noise, whenever it is asked.

    The noise, the photographs and their names are those of `mldm evaluate` with its default seed, so that both give the
    same numbers. Training goes on as if nothing had been looked at: no random number is drawn.

    Made before the VAE is rounded to half precision: pictures are decoded by a float32 copy of it.

    Args:
        trainer: with its networks loaded.
        accelerator: of the run.
        preset: whose networks do not judge, where others are on this machine; None without a plugin.

    Raises:
        DataError: no photographs, or photographs that are trained on.
        WeightsError: the networks that judge cannot be had.

    Attributes:
        file: what was found; written by the first process.
    """

    def __init__(self, trainer: Trainer, accelerator: Accelerator, preset: Preset | None) -> None:
        self._trainer, self._accelerator = trainer, accelerator
        flags = trainer.flags
        photographs = _open(trainer, accelerator)
        with together(accelerator), generators.untouched():
            judges = choose_judges(() if preset is None else networks_in(preset.dump()))
            self._look = OneStep(trainer.vae, trainer.noise_scheduler, judges, accelerator.device)
            chosen = cases_of_photographs(photographs, flags.evaluate_photographs, seed=0)
            rows = [case.row for case in chosen if case.row is not None]
            own = rows[accelerator.process_index :: accelerator.num_processes]
            self._captions = {row: photographs.captions[row] for row in own}
            self._examples = {row: _checked(photographs.look(row), trainer, row) for row in own}
            digests = [photographs.digest(row) for row in rows]  # a row is another photograph once a file is added
        self._texts: dict[str, Tensor] = {}
        about = {
            "data": str(_folder(flags)),
            "split": photographs.split,
            "photographs": rows,
            "digests": digests,
            "resolution": flags.resolution,
            "timesteps": TIMESTEPS,
            "networks": [judges.face, judges.trunk],
        }
        self.file = EvaluationFile(Path(flags.output_dir), about)

    @torch.no_grad()
    def read_captions(self) -> None:
        """Encode the captions, while the text encoder is on its device and in the precision of the run."""
        trainer, tokenizer = self._trainer, self._trainer.tokenizer
        if tokenizer is None:  # a trainer that reads no captions
            return
        options = {"max_length": tokenizer.model_max_length, "padding": "max_length", "truncation": True}
        for caption in self._captions.values():
            tokens = tokenizer([caption], **options, return_tensors="pt").input_ids
            self._texts[caption] = trainer.text_of({"input_ids": tokens.to(trainer.device)})

    def __call__(self, step: int) -> dict[str, float | None]:
        """Look, write down, and tell. Every process calls this at the same step, and looks at its share.

        Returns:
            the mean of each quantity over photographs and timesteps, as `evaluate/NAME`; without those that no
            photograph has. The same on every process.
        """
        began, accelerator = time.monotonic(), self._accelerator
        with together(accelerator), generators.untouched(), torch.no_grad(), evaluating(self._trainer.trained):
            own = [(row, self._of_photograph(row)) for row in self._examples]
        found = [values for _, values in sorted(gather_object(own), key=lambda pair: pair[0])]
        values = {quantity.name: [_mean(of_one[quantity.name]) for of_one in found] for quantity in QUANTITIES}
        means = {name: _mean(of_all) for name, of_all in values.items()}
        if accelerator.is_main_process:
            at_t = {name: [_mean(at) for at in zip(*(v[name] for v in found), strict=True)] for name in values}
            self.file.add(step, {"values": values, "by_timestep": at_t})
        shown = ", ".join(f"{q.title} {means[q.name]:.4g}" for q in QUANTITIES if means[q.name] is not None)
        log.info(f"evaluation of step {step}: {shown} ({len(found)} photographs, {time.monotonic() - began:.1f} s)")
        return {f"evaluate/{name}": mean for name, mean in means.items() if mean is not None}

    def _of_photograph(self, row: int) -> dict[str, list[float | None]]:
        """Each quantity at each timestep."""
        found = list(self._look(self._predict, self._examples[row], self._captions[row], f"{row:05d}"))
        return {quantity.name: [at_t[quantity.name] for at_t in found] for quantity in QUANTITIES}

    def _predict(self, noisy: Tensor, timestep: float, caption: str, example: Example) -> Tensor:
        """By the trainer's own path, around the wrapper that would wait for other processes."""
        trainer = self._trainer
        batch: dict[str, Any] = {"text": self._texts[caption]} if self._texts else {}
        if trainer.hints is not None and (hint := example.conditioning_pixel_values) is not None:
            batch["conditioning_pixel_values"] = hint[None].to(trainer.device)
        batch["conditions"] = {name: value[None].to(trainer.device) for name, value in example.conditions.items()}
        timesteps = torch.tensor([int(timestep)], device=trainer.device)
        return trainer.predict(trainer.trained, batch, noisy.to(trainer.dtype), timesteps)


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; afterwards each of its modules is in the mode that it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _folder(flags: TrainerFlags) -> Path | None:
    given = flags.evaluate_data_dir or flags.train_data_dir
    return None if given is None else Path(given).resolve()


def _open(trainer: Trainer, accelerator: Accelerator) -> Photographs:
    """The photographs; one process converts the data set, the others find it done."""
    flags = trainer.flags
    columns = {"picture": flags.image_column, "caption": flags.caption_column, "mask": flags.mask_column}
    columns |= {"boxes": flags.face_boxes_column}
    if trainer.hints is not None:
        columns["conditioning"] = trainer.hints

    def open_all() -> Photographs:
        folder = _folder(flags)
        if folder is None:
            raise DataError("--evaluate_steps needs photographs that are not trained on: give --evaluate_data_dir.")
        if _trains_on(folder, trainer):
            raise DataError(
                f"{trainer.flags.script} trains on every picture of {flags.train_data_dir}, which has no splits train "
                "and validation, so none is left to evaluate on: give --evaluate_data_dir a folder elsewhere."
            )
        given: Any = {"columns": columns, "cache": flags.cache_dir, "conditions": trainer.conditions}
        photographs = open_photographs(folder, flags.resolution, **given)
        if photographs.split not in HELD_OUT and folder == Path(flags.train_data_dir or "").resolve():
            raise DataError(
                f"{folder} has no split 'validation' or 'test' to evaluate on: put photographs that are not trained on "
                f"into {folder.name}/validation, or give --evaluate_data_dir."
            )
        return photographs

    if accelerator.num_processes > 1:
        with together(accelerator):
            if accelerator.is_local_main_process:
                open_all()
    with together(accelerator):
        return open_all()


def _trains_on(folder: Path, trainer: Trainer) -> bool:
    """Whether a trainer that takes every file of its folder, or of the split `train` in it, takes those of `folder`."""
    flags = trainer.flags
    if flags.dataset_name is not None or flags.train_data_dir is None or not trainer.every_file:
        return False
    trained = trained_part(Path(flags.train_data_dir).resolve())
    return trained is not None and folder.is_relative_to(trained)


def _checked(example: Example, trainer: Trainer, row: int) -> Example:
    if trainer.hints is not None and example.conditioning_pixel_values is None:
        raise DataError(
            f"row {row} of {_folder(trainer.flags)} has no hint: add the column {trainer.hints!r} "
            "(--conditioning_image_column), which the ControlNet is trained with."
        )
    return example


def _mean(values: Sequence[float | None]) -> float | None:
    """Over those that are there; NaN if one of them is."""
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None
