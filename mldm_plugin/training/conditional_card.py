"""The model card of a conditional model: what it was trained on and how it draws, as the Hub and people read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from mldm_plugin.training.conditional_flags import ConditionalFlags

CARD = "README.md"
OWN = {"attributes": "attributes", "semantic_mask": "mask"}  # conditions that have an argument of their own


def card_of(flags: ConditionalFlags) -> str:
    """README.md of a finished run. It names no licence: that depends on the pictures and the autoencoder."""
    front = ["---", "library_name: diffusers", "tags: [diffusers, diffusers-training, mldm-plugin]", "---"]
    draw = [
        "```python",
        "from mldm_plugin.conditions.pipeline import ConditionalLDMPipeline",
        "",
        f"pipeline = ConditionalLDMPipeline.from_pretrained({json.dumps(named(flags.output_dir))})",
        f"pipeline({', '.join(_arguments(flags))}).images[0]",
        "```",
    ]
    said = [f"# {named(flags.output_dir)}", *_told(flags), "\n".join(draw)]
    return "\n".join(front) + "\n\n" + "\n\n".join(said) + "\n"


def named(place: str | None) -> str:
    """A folder of this machine by its last name alone, a name on the Hub as it is."""
    return Path(place or "").resolve().name if place and Path(place).exists() else str(place)


def _told(flags: ConditionalFlags) -> Iterator[str]:
    preset = f" and the preset {named(flags.preset)}" if flags.preset else ""
    data = flags.train_data_dir or flags.dataset_name
    yield (
        f"A latent diffusion model of {flags.resolution}x{flags.resolution} pixels, trained from scratch on "
        f"{named(data)} by mldm-plugin's {flags.script}{preset}, in the latents of the autoencoder of "
        f"{named(flags.pretrained_model_name_or_path)}. It predicts {flags.prediction_type}; see preset.yaml and "
        "arguments.json beside this file."
    )
    if not flags.condition:
        yield "It draws from no condition."
    elif flags.condition_dropout:
        share = f"{flags.condition_dropout:.0%} of the pictures"
        yield (
            f"It draws from {' and '.join(flags.condition)}, each of which was taken from {share} in training: any may "
            "be left out, and `guidance_scale` leads away from their absence."
        )
    else:
        yield (
            f"It draws from {' and '.join(flags.condition)}. None was taken away in training: what it draws without, "
            "or with a `guidance_scale` other than 1, it has not learnt unless pictures lacked one."
        )
    if OWN.keys() & set(flags.condition or ()):
        yield (
            "`attributes` are zeros and ones in the order of `pipeline.conditions.encoders['attributes'].names`, or a "
            "mapping of them; `mask` is a picture of labels of that size."
        )
    yield "No licence is given here: it depends on the training pictures and on the autoencoder."


def _arguments(flags: ConditionalFlags) -> Iterator[str]:
    """What the pipeline is called with."""
    names = flags.condition or ()
    yield from (f"{argument}={argument}" for name, argument in OWN.items() if name in names)
    if others := [f'"{name}": [...]' for name in names if name not in OWN]:
        yield f"conditions={{{', '.join(others)}}}"
