"""`--cache_latents`: pictures and captions are encoded once, before the first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from mldm_plugin.data.latents_cache import LatentsCache, network_digest
from mldm_plugin.data.training_set import TrainingSet
from mldm_plugin.errors import CheckError
from mldm_plugin.training import generators
from mldm_plugin.training.agreement import together
from mldm_plugin.training.flags import TrainerFlags
from mldm_plugin.training.objective import Objective
from mldm_plugin.training.trainer import Trainer

log = get_logger(__name__)

# Of what an earlier run left, so many pictures and captions are encoded again and compared: a name does not say which
# version of the libraries wrote it. Chosen; how far they may differ is what `proof` allows encode(picture), where
# rounding to bfloat16 was seen to make 1.5 %.
CHECKED = 4
TOLERANCE = 0.05


@dataclass(frozen=True)
class Task:
    """One entry: what it is of, its key, and how it is made."""

    what: str
    key: str
    encode: Callable[[], Tensor]


def cache_latents(training_set: TrainingSet, trainer: Trainer, accelerator: Accelerator, objective: Objective) -> None:
    """Encode what the cache does not hold yet, each process its share, and have the training set read it.

    Every picture is encoded alone, so that its entry does not depend on what else was missing. Draws no random
    numbers. Afterwards the encoders are off the device, and pictures are loaded only if the objective needs them.

    Raises:
        DataError: a picture that cannot be read.
        CheckError: an entry is not what its network makes, or is not finite.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    pictures = objective.needs_pictures
    vae, text = trainer.vae, trainer.text_encoder
    with together(accelerator):
        cache = LatentsCache(
            cache_folder(trainer.flags),
            training_set.transform,
            vae=network_digest(vae, vae.config),
            text_encoder="" if text is None else network_digest(text, text.config.to_dict()),
        )
        log.info(f"latents and encoded captions are kept in {cache.folder}")
        own = [(i, training_set.digest(i)) for i in range(rank, len(training_set), processes)]
        captions = [] if text is None else training_set.captions()[rank::processes]
    digests = [digest for _, digest in sorted(gather_object(own))]
    with together(accelerator), generators.untouched(), torch.no_grad():
        for name, tasks in _tasks(cache, training_set, trainer, own, captions).items():
            _fill(cache, tasks, tqdm(desc=f"encoding {name}", disable=not accelerator.is_local_main_process))
        side = trainer.flags.resolution
        trainer.layouts = (_layout(trainer, 1, side), _layout(trainer, 2, side))
    training_set.read_latents(cache, digests, pictures=pictures)
    trainer.set_encoders_aside()
    if not pictures:
        log.info("no loss compares with pictures, so from here on they are not loaded, nor compared with latents.")


def cache_folder(flags: TrainerFlags) -> Path:
    """Where the cache lies: as asked, else where the data set is kept, for it serves every run on it.

    Not in the run folder, which is handed on: latents can be decoded to the pictures of the data set. Not inside
    the data set's folder, of which every file is read.
    """
    if flags.latents_cache_dir is not None:
        return Path(flags.latents_cache_dir)
    data = Path(flags.dataset_name or flags.train_data_dir or "").absolute()
    if data.is_dir():
        return data.with_name(f"{data.name}.latents")
    return Path(flags.cache_dir or datasets.config.HF_DATASETS_CACHE) / "mldm_latents"


def _layout(trainer: Trainer, pictures: int, side: int) -> torch.memory_format:
    """The memory format in which the VAE hands over what it makes of so many pictures at once."""
    parameters = trainer.encode(torch.zeros(pictures, 3, side, side))
    last = not parameters.is_contiguous() and parameters.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _tasks(
    cache: LatentsCache,
    training_set: TrainingSet,
    trainer: Trainer,
    own: list[tuple[int, str]],
    captions: list[str],
) -> dict[str, list[Task]]:
    """What this process has to see to: its pictures, by number and digest, and captions."""

    def encode(index: int, mirrored: bool) -> Tensor:
        return trainer.encode(training_set.picture(index, mirrored=mirrored)[None])[0]

    def encode_text(tokens: Tensor) -> Tensor:
        return trainer.text_of({"input_ids": tokens[None].to(trainer.device)})[0]

    tasks: dict[str, list[Task]] = {"pictures": [], "captions": []}
    for index, digest in own:
        for mirrored in (False, True) if training_set.mirrors else (False,):
            what, key = f"picture {training_set.name(index)}", cache.posterior_key(digest, mirrored)
            tasks["pictures"].append(Task(what, key, partial(encode, index, mirrored)))
    for caption in captions:
        tokens = training_set.tokens(caption)
        tasks["captions"].append(Task(f"caption {caption!r}", cache.text_key(tokens), partial(encode_text, tokens)))
    return tasks


def _fill(cache: LatentsCache, tasks: list[Task], bar: tqdm) -> None:
    found, told = [], False
    bar.reset(len(tasks))
    for task in tasks:
        if cache.holds(task.key):
            found.append(task)
        else:
            made = task.encode()
            if not made.isfinite().all():
                raise CheckError(
                    f"{task.what} is NaN or infinite when it is encoded in {made.dtype}: use --mixed_precision bf16 "
                    "or no, or another pipeline."
                )
            if not told:
                size = made.nbytes * len(tasks) / 1e9
                log.info(f"{task.what} and {len(tasks) - 1} more in this process will take {size:.1f} GB")
                told = True
            cache.write(task.key, made)
        bar.update()
    bar.close()
    for task in found[:CHECKED]:
        _check(cache, task)


def _check(cache: LatentsCache, task: Task) -> None:
    made = task.encode().float().cpu()
    error = ((cache.read(task.key).float() - made).norm() / made.norm()).item()
    if not error <= TOLERANCE:
        raise CheckError(
            f"{cache.path(task.key)} is not what encoding the {task.what} gives now (relative error {error:.2g}, "
            f"expected at most {TOLERANCE:g}), though picture, transform and network are the same: other versions of "
            "the libraries wrote it. Remove the folder, or name another one with --latents_cache_dir."
        )
