"""Other people's training scripts, unedited: `accelerate launch -m mldm_plugin train_x.py … --loss-plugin mldm`.

The functions here are what a spliced script calls. One process runs one script, so there is one attachment in it.

    launcher       takes our flags off the command line (flags), splices the script (codemod, kohya; edits), runs it
    ledger         while the script loads pictures, keeps a frame with each: where it was cut (frame), as a tensor, too
                   (followed)
    annotation     `collate`: masks and boxes into the batch, in the pictures' frames, compared with them (placement)
    attachment     `loss`: the step out of the loop's variables (scope, names), through a `LossStack`, and
                   its loss back to `accelerator.backward`; says what was seen (coverage) and writes it down (records)
    ranks          refuses what was not shown to work on several processes
    kohya_loop, kohya_masks     the same for sd-scripts, whose step and pictures are spread over methods
    trainers, onetrainer*, musubi*, simpletuner, diffsynth, ai_toolkit, lightning, loop     trainers with doors of their
                   own
    autoencoders    of hosts, in the form of diffusers
    script_flags   a preset's settings for the script, as defaults of its parser
    by_frame       for a loop in an imported module: watched instead of spliced
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mldm_plugin.attach.flags import Settings, take
from mldm_plugin.errors import MldmError

if TYPE_CHECKING:
    from torch import Tensor

    from mldm_plugin.attach.attachment import Attachment

_attachment: Attachment | None = None


def start(settings: Settings | None = None) -> Attachment:
    """Begin: take the plugin's flags off `sys.argv`, unless the launcher has, and follow pictures from now on."""
    global _attachment
    if _attachment is None:
        from mldm_plugin.attach.attachment import Attachment

        _attachment = _start_alone() if settings is None else Attachment(settings)
    return _attachment


def _start_alone() -> Attachment:
    """For a patched script that was started without the launcher, and does itself what that would do."""
    from mldm_plugin.attach.attachment import Attachment

    failures: list[BaseException] = []

    def explain(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        failures.append(error)
        if isinstance(error, MldmError):
            sys.stderr.write(f"\nmldm: {error}\n")  # after a progress bar
        else:
            sys.__excepthook__(kind, error, trace)

    def finish() -> None:
        if failures:
            return
        try:
            attachment.finish()
        except MldmError as error:
            sys.stderr.write(f"mldm: {error}\n")
            sys.stderr.flush()
            os._exit(1)  # at exit there is no other way to a status

    sys.excepthook = explain
    settings, sys.argv[1:] = take(sys.argv[1:], name=Path(sys.argv[0]).stem)
    attachment = Attachment(settings)
    atexit.register(finish)
    return attachment


def collate(collate_fn: Callable[[Any], Any] | None = None) -> Callable[[Any], Any]:
    """The script's collate function, or torch's own, with masks and boxes added to its batches."""
    return start().collate(collate_fn)


def cache(latents: Any, variables: dict[str, Any]) -> Any:
    """The latents that a script keeps for later, with the annotation of their pictures."""
    return start().cache(latents, variables)


def note(value: Any, variables: dict[str, Any]) -> Any:
    """What a method of kohya's trainer classes returns, as it is; its variables are kept for this step's `loss`."""
    return start().note(value, variables)


def factor(value: float) -> float:
    """The number that kohya's scripts multiply latents by, as it is."""
    return start().factor(value)


def loss(value: Tensor, variables: dict[str, Any]) -> Tensor:
    """The loss to train with, in place of the script's own."""
    return start().loss(value, variables)
