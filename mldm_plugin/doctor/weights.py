"""What there is to say of the weights: whether they moved, how far, and what is broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mldm_plugin.doctor.controlnet import read_controlnet
from mldm_plugin.doctor.layers import Changes, Layer
from mldm_plugin.doctor.lora import read_lora
from mldm_plugin.doctor.run import Run
from mldm_plugin.doctor.tensors import find_base
from mldm_plugin.prepare.remarks import Remark, part_of

# ‖ΔW‖ / ‖W₀‖ below which nobody will see a change. A LoRA of people-mini, scaled to 7.5e-6, changed two pictures of 20
# steps by 0.6 of 255 on average and 16 at most; at 1e-4 sampling had already made others of them, by 27 on average.
NEGLIGIBLE = 1e-5
LISTED = 3  # layers at either end


def read_changes(run: Run) -> Changes | None:
    """What the training did to the weights; None where there are none yet.

    Raises:
        MldmError: a file that cannot be read, or is not what it should be.
    """
    if run.weights is None:
        return None
    base = find_base(run.base, run.arguments.get("variant")) if run.base else None
    found = (read_lora if run.kind == "LoRA" else read_controlnet)(run.weights, base)
    found.base = run.base if base is not None else None
    return found


def verdict_on(changes: Changes) -> str:
    """What it comes to, in a sentence."""
    if changes.broken:
        does = "is broken"
    elif not (changes.zero or changes.layers):
        does = "could not be measured"
    elif not any(layer.moved for layer in changes.zero or changes.layers):
        does = "does nothing"
    else:
        does = "does next to nothing" if negligible(changes) else "does something"
    return f"The {changes.what} {does}."


def negligible(changes: Changes) -> bool:
    """Whether a LoRA moved too little to be seen. A ControlNet speaks through its zero convolutions, however little
    its other layers moved."""
    return changes.what == "LoRA" and changes.share is not None and changes.share < NEGLIGIBLE


def remarks(changes: Changes, wanted_base: str | None) -> Iterator[Remark]:
    """All there is to say.

    Args:
        wanted_base: what should have been compared with, if anything says so.
    """
    yield from _of_faults(changes)
    yield from _of_zero(changes)
    yield from _of_layers(changes)
    yield from _of_base(changes, wanted_base)


def _of_faults(changes: Changes) -> Iterator[Remark]:
    if changes.broken:
        few = part_of(len(changes.broken), changes.tensors, "tensor holds", "tensors hold")
        text = (
            f"{few} NaN or infinity: the training blew up, and these weights draw nothing. Take an earlier checkpoint, "
            "or train anew with a lower --learning_rate."
        )
        yield Remark("wrong", text, tuple(changes.broken))
    if changes.unscaled:
        few = _count(len(changes.unscaled), "layer")
        text = f"Not measured: {few} whose alpha the file does not tell by one number, or a name."
        yield Remark("worth a look", text, tuple(changes.unscaled))
    if changes.misfits:
        few = _count(len(changes.misfits), "layer")
        text = f"{few} of another shape than in {changes.base}: the {changes.what} was trained on another model."
        yield Remark("wrong", text, tuple(changes.misfits))
    if changes.unmeasured:
        few = _count(len(changes.unmeasured), "tensor")
        if changes.what == "LoRA":
            text = f"Not measured: {few} of another kind than the two matrices of a LoRA."
            yield Remark("worth a look", text, tuple(changes.unmeasured))
        else:
            yield Remark("fine", f"Not compared: {few}, as what they began as is not known.", tuple(changes.unmeasured))


def _of_zero(changes: Changes) -> Iterator[Remark]:
    if not changes.zero:
        return
    still = tuple(layer.name for layer in changes.zero if layer.moved == 0)
    few = part_of(len(still), len(changes.zero), "zero convolution is", "zero convolutions are")
    if len(still) == len(changes.zero):
        yield Remark("wrong", f"{few} still zero: the ControlNet adds nothing to the U-Net.")
    elif still:
        yield Remark("worth a look", f"{few} still zero.", still)
    else:
        norms = [layer.moved for layer in changes.zero]
        text = f"All {len(norms)} zero convolutions have left zero: norms {min(norms):.2g} to {max(norms):.2g}."
        yield Remark("fine", text)


def _of_layers(changes: Changes) -> Iterator[Remark]:
    layers = changes.layers
    if not layers:
        if not (changes.zero or changes.broken or changes.misfits):
            text = f"No layer could be measured: whether the {changes.what} does anything is not known."
            yield Remark("worth a look", text)
        return
    still = tuple(layer.name for layer in layers if layer.moved == 0)
    moved = part_of(len(layers) - len(still), len(layers), "layer has", "layers have") + " moved"
    if len(still) == len(layers):
        why = (
            "the up matrices, or alpha, are zero as before training" if changes.what == "LoRA" else "all is as it began"
        )
        text = f"No layer of {len(layers)} has moved: {why}. Was the learning rate 0, or was no step made?"
        yield Remark("wrong", text)
        return
    if still:
        few = part_of(len(still), len(layers), "layer has", "layers have")
        yield Remark("worth a look", f"{few} not moved.", still)
    if changes.share is None:
        yield Remark("fine", f"{moved}.")
    elif negligible(changes):
        by = f"together by {percent(changes.share)} of their base: too little to be seen"
        yield Remark("wrong", f"{moved}, {by}. Train longer, or with a higher learning rate or alpha.")
    else:
        yield Remark("fine", f"{moved}, together by {percent(changes.share)} of their base.")


def _of_base(changes: Changes, wanted: str | None) -> Iterator[Remark]:
    unknown = tuple(layer.name for layer in changes.layers if layer.base is None and layer.name not in changes.misfits)
    if changes.base is None:
        why = f"{wanted} has no safetensors on this machine" if wanted else "nothing says what it was trained on"
        text = f"How far the layers moved is not compared with their base: {why}. Say it with --base."
        yield Remark("worth a look", text)
    elif unknown or (changes.what == "ControlNet" and not (changes.layers or changes.misfits)):
        few = part_of(len(unknown), len(changes.layers), "layer is", "layers are") if unknown else "The layers are"
        text = f"{few} not found in {changes.base} by name: another kind of model, or other names for its layers."
        yield Remark("worth a look", text, unknown)


def table(changes: Changes) -> Iterator[str]:
    """The layers that moved least and most, by their share of the base where that is known."""
    layers = changes.layers or changes.zero
    if not layers:
        return
    known = all(layer.share is not None for layer in layers)
    ordered = sorted(layers, key=lambda layer: (layer.share or 0.0) if known else layer.moved)
    yield f"  {'|change|':>9} {'of base':>8}  layer"
    if len(ordered) <= 2 * LISTED:
        yield from _rows(ordered)
    else:
        yield from _rows(ordered[:LISTED])
        yield f"  {'...':>9} {'':>8}  {len(ordered) - 2 * LISTED} more"
        yield from _rows(ordered[-LISTED:])


def _rows(layers: Sequence[Layer]) -> Iterator[str]:
    for layer in layers:
        yield f"  {layer.moved:>9.3g} {'-' if layer.share is None else percent(layer.share):>8}  {layer.name}"


def percent(share: float) -> str:
    """A share in per cent, with two digits that tell.

    >>> percent(0.0123), percent(0.000012), percent(1.0)
    ('1.2%', '0.0012%', '100%')
    """
    return f"{100 * share:.2g}%" if share < 0.995 else f"{share:.0%}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
