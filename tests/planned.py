"""A run.yaml of ten photographs, decided as `mldm start` does, and the commands that follow from it."""

import json

from mldm_plugin.project.models import known_model
from mldm_plugin.project.photos import Photo
from mldm_plugin.project.plan import decide
from mldm_plugin.project.scale import OwnPhotos
from mldm_plugin.reproduce.run import Reproduction


def photographs(count):
    return [Photo(f"{number}.jpg", (800, 800), faces=[300.0], people=[0]) for number in range(count)]


def decided(tmp_path, model="people-mini", count=10, **options):
    known = known_model(model)
    return decide(tmp_path / "photos", photographs(count), "anna woman", known, known.pipeline, **options)


def commands(tmp_path, **options):
    run = decided(tmp_path, **options).run
    return run, Reproduction(OwnPhotos(tmp_path, run).recipe(), OwnPhotos(tmp_path, run), seeds=1, prompts=0)


def training_set(folder, rows):
    """Rows of metadata.jsonl by split, without pictures."""
    for split, names in rows.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"file_name": f"images/{n}.jpg", "mask_file_name": f"masks/{n}.png"}) + "\n" for n in names)
        (folder / split / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
