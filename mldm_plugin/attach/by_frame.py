"""For loops that lie in an imported module: accelerate and torch are watched instead of a text being edited."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mldm_plugin.attach.attachment import Attachment


def install(attachment: Attachment) -> None:
    """Wrap `Accelerator.backward` and `DataLoader.__init__`; the loop's variables are those of backward's caller."""
    from accelerate import Accelerator
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
