"""For loops that lie in an imported module: accelerate and torch are watched instead of a text being edited."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from mldm_plugin.errors import CheckError, MldmError

if TYPE_CHECKING:
    from mldm_plugin.attach.attachment import Attachment


def install(attachment: Attachment) -> None:
    """Wrap `Accelerator.backward` and `DataLoader.__init__`; the loop's variables are those of backward's caller.

    Raises:
        MldmError: accelerate is not installed, so no loop can call it.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MldmError(
            "--mldm-by-frame finds a loop by accelerate's backward, and accelerate is not installed here: for a loop "
            "without it use the library form (docs/attach.md)."
        ) from error
    from torch.utils.data import DataLoader

    original_backward, original_init = Accelerator.backward, DataLoader.__init__

    @functools.wraps(original_backward)
    def backward(self: Accelerator, loss: Any, **kwargs: Any) -> None:
        original_backward(self, attachment.loss(loss, sys._getframe(1).f_locals), **kwargs)

    @functools.wraps(original_init)
    def init(self: Any, dataset: Any, *args: Any, **kwargs: Any) -> None:
        batch_size = args[0] if args else kwargs.get("batch_size", 1)
        if batch_size is None:  # webdataset's batches are made elsewhere; the first step says that they have no masks
            pass
        elif len(args) < 6:  # collate_fn is the sixth after the data set
            kwargs["collate_fn"] = attachment.collate(kwargs.get("collate_fn"), strict=False)
        else:
            args = (*args[:5], attachment.collate(args[5], strict=False), *args[6:])
        original_init(self, dataset, *args, **kwargs)

    Accelerator.backward = backward
    DataLoader.__init__ = init  # type: ignore[method-assign]
    stop_unseen(
        attachment,
        "accelerator.backward, by which --mldm-by-frame finds a loop",
        "The loop calls loss.backward(), or is that of another trainer; use the library form (docs/attach.md).",
    )


def stop_unseen(attachment: Attachment, door: str, remedy: str) -> None:
    """Stop the script when an optimizer steps and no loss has come by: it would train to its end without ours.

    Args:
        attachment: whose losses are meant to be trained with.
        door: what losses come through.
        remedy: why none may have come, and what to do.
    """
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    def before_step(optimizer: Any, *_: Any) -> None:
        if not attachment.steps:
            raise CheckError(
                f"the script's {type(optimizer).__name__} takes its first step, and no loss has come through {door}: "
                f"the preset's losses would do nothing. {remedy}"
            )

    register_optimizer_step_pre_hook(before_step)  # for good: torch is going through its hooks while this one runs
