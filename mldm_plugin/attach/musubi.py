"""musubi-tuner, unedited: `python -m mldm_plugin src/musubi_tuner/flux_2_train_network.py … --loss-plugin mldm`.

Its trainers share one loop, whose step is three methods that are made to be overridden: one adds noise, `call_dit` has
output and target, and `process_batch` returns the loss. They are followed on the trainer that is about to train, so
nothing here knows a model. σ is read off the noisy latents, for its timesteps are σ · 1000 or one more.

Its pictures are latents in a cache, see `musubi_pictures`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mldm_plugin.attach.annotation import KEY, one_frame
from mldm_plugin.attach.attachment import Attachment
from mldm_plugin.attach.by_frame import stop_unseen
from mldm_plugin.attach.musubi_pictures import Batches
from mldm_plugin.attach.scope import share_of_noise
from mldm_plugin.errors import CheckError, MldmError


def install(attachment: Attachment, script: Path) -> None:
    """Follow the trainer that `script` is about to make.

    Raises:
        MldmError: musubi-tuner is not installed, or has no such methods.
    """
    try:
        from musubi_tuner.dataset.image_video_dataset import ImageDataset
        from musubi_tuner.dataset.media_utils import resize_image_to_bucket
        from musubi_tuner.training.trainer_base import NetworkTrainer
    except ImportError as error:
        raise MldmError(
            f"{script} is a script of musubi-tuner's, and what it trains with was not found ({error}): install "
            "musubi-tuner in this environment, 0.3.4 or newer."
        ) from error
    train = NetworkTrainer.train

    @functools.wraps(train)
    def followed(self: Any, args: Any) -> None:
        Steps(self, attachment)
        train(self, args)

    NetworkTrainer.train = followed
    stop_unseen(
        attachment,
        "musubi-tuner's process_batch",
        "Full fine-tuning has loops of its own (hv_train, qwen_image_train, zimage_train, hidream_o1_train): "
        "train a LoRA, or use the library form (docs/attach.md).",
    )
    if attachment.in_use:
        _carry(ImageDataset, attachment, resize_image_to_bucket)


def _carry(data_set: Any, attachment: Attachment, resize: Callable[..., Any]) -> None:
    """Have the data sets of this class put the annotation of its pictures into each batch."""
    prepare = data_set.prepare_for_training

    @functools.wraps(prepare)
    def prepare_for_training(self: Any, *args: Any, **kwargs: Any) -> None:
        prepare(self, *args, **kwargs)
        self.batch_manager = Batches(self.batch_manager, self.datasource, attachment.stored_of, resize)

    data_set.prepare_for_training = prepare_for_training


class Steps:
    """The training steps of one trainer: what its methods saw and made, until its loss is computed.

    Args:
        trainer: one of musubi-tuner's; three of its methods are followed from now on.
        attachment: whose losses are mixed into its own.
    """

    def __init__(self, trainer: Any, attachment: Attachment) -> None:
        self._trainer, self._attachment = trainer, attachment
        self._noisy: Tensor | None = None
        self._output: Any = None
        self._vae: Any = None
        name = "get_noisy_model_input_and_timesteps"
        setattr(trainer, name, self._noting_noise(getattr(trainer, name)))
        trainer.call_dit = self._noting_output(trainer.call_dit)
        trainer.process_batch = self._mixing(trainer.process_batch)

    def _noting_noise(self, add_noise: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(add_noise)
        def noting(*args: Any, **kwargs: Any) -> Any:
            result = add_noise(*args, **kwargs)
            self._noisy = result[0]
            return result

        return noting

    def _noting_output(self, call_dit: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call_dit)
        def noting(*args: Any, **kwargs: Any) -> Any:
            self._output = call_dit(*args, **kwargs)
            return self._output

        return noting

    def _mixing(self, process_batch: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(process_batch)
        def mixing(
            args: Any,
            accelerator: Any,
            transformer: Any,
            network: Any,
            batch: dict[str, Any],
            latents: Tensor,
            noise: Tensor,
            noise_scheduler: Any,
            *more: Any,
        ) -> tuple[Tensor, dict[str, float]]:
            loss, logs = process_batch(
                args, accelerator, transformer, network, batch, latents, noise, noise_scheduler, *more
            )
            around = {
                "args": args,
                "accelerator": accelerator,
                "noise_scheduler": noise_scheduler,
                "batch": {KEY: batch[KEY]} if KEY in batch else {},
                "global_step": more[-1],
                "vae": self._autoencoder(args),
            }
            return self._attachment.loss(loss, {**self._step(latents, noise), **around}), logs

        return mixing

    def _step(self, latents: Tensor, noise: Tensor) -> dict[str, Any]:
        """The tensors of this step, which are forgotten here.

        Raises:
            CheckError: they are not those of pictures, one of each.
        """
        (noisy, output), self._noisy, self._output = (self._noisy, self._output), None, None
        if noisy is None or output is None:
            raise CheckError(
                "musubi-tuner has computed a loss without adding noise or calling its network by the methods that are "
                "followed: this trainer has a step of its own. Train without the plugin."
            )
        tensors = {"latents": latents, "noise": noise, "noisy_latents": noisy.detach()}
        tensors |= {"model_pred": output.pred, "target": output.target.detach()}
        shapes = {tuple(one_frame(x).shape) for x in tensors.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 4:
            raise CheckError(
                f"the tensors of this step have shapes {', '.join(map(str, sorted(shapes)))}: the plugin's losses are "
                "of single pictures, and these are films, layers or tokens. Train without the plugin."
            )
        sigmas = share_of_noise(latents, noise.to(latents.device), noisy.detach().to(latents.device))
        return {**tensors, "sigmas": sigmas, "timesteps": sigmas * 1000}

    def _autoencoder(self, args: Any) -> Any:
        """A copy for the losses: musubi-tuner loads one where it samples alone, and moves it about.

        Raises:
            MldmError: no file is named.
        """
        if not self._attachment.in_use or self._attachment.steps:
            self._vae = None
        elif self._vae is None:
            if not args.vae:
                raise MldmError("the losses decode, and musubi-tuner was told no autoencoder: add --vae FILE.")
            with torch.random.fork_rng():  # its first weights are drawn, and then loaded
                self._vae = self._trainer.load_vae(args, torch.float32, args.vae)
        return self._vae
