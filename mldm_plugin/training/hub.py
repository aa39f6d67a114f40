"""Uploading a finished run to the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import PIL.Image
from diffusers.utils.hub_utils import load_or_create_model_card, populate_model_card
from huggingface_hub import create_repo, upload_folder

from mldm_plugin.training.flags import TrainerFlags
from mldm_plugin.training.validation import Sampled

TAGS = ("stable-diffusion", "stable-diffusion-diffusers", "text-to-image", "diffusers", "diffusers-training")


def make_repository(flags: TrainerFlags) -> str:
    """Create the repository if need be, before any time is spent on training; its full name."""
    name = flags.hub_model_id or Path(flags.output_dir).name
    return create_repo(repo_id=name, exist_ok=True, token=flags.hub_token).repo_id


def upload(what: str, flags: TrainerFlags, repository: str, sampled: Sequence[Sampled]) -> None:
    """Write a model card, but for a trainer from scratch, which has written its own, and upload the run folder, without
    its checkpoints' unfinished parts, and without panels/ and report.html, which show the photographs."""
    folder = Path(flags.output_dir)
    if flags.stands_in:  # for a script that trains on Stable Diffusion, whose licence and tags the card has
        write_model_card(what, flags, repository, folder, sampled)
    upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message=f"Trained {what}",
        ignore_patterns=["step_*", "epoch_*", ".*", "panels/*", "report.html"],
        token=flags.hub_token,
    )


def write_model_card(what: str, flags: TrainerFlags, repository: str, folder: Path, sampled: Sequence[Sampled]) -> None:
    """README.md with what was trained on what, and the last validation pictures."""
    base, preset = flags.pretrained_model_name_or_path, flags.preset
    text = [
        f"# {repository}",
        f"A {what} for {base}, trained with mldm-plugin" + (f" and the preset {preset}." if preset else "."),
    ]
    for i, one in enumerate(sampled):
        name = f"images_{i}.png"
        side_by_side(one.shown).save(folder / name)
        label = "what was sampled" if one.hint is None else "the hint and what was sampled"
        text.append(f"{one.prompt}\n\n![{label}]({name})")
    card = load_or_create_model_card(
        repo_id_or_path=repository,
        from_training=True,
        license="creativeml-openrail-m",
        base_model=base,
        model_description="\n\n".join(text),
        inference=True,
    )
    populate_model_card(card, tags=[*TAGS, what.lower()]).save(folder / "README.md")


def side_by_side(pictures: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    """One row of pictures, of the size of the last."""
    width, height = pictures[-1].size
    row = PIL.Image.new("RGB", (width * len(pictures), height))
    for i, picture in enumerate(pictures):
        row.paste(picture.resize((width, height)), (i * width, 0))
    return row
