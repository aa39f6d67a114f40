"""The edits in a script's text: where they go, that lines stay, and what is refused."""

import ast
from pathlib import Path

import pytest
from click.testing import CliRunner
from diffusers_scripts import EXAMPLES, needs_examples

from mldm_plugin.attach.codemod import splice
from mldm_plugin.attach.edits import ScriptError, diff
from mldm_plugin.cli import main

SCRIPT = '''"""A loop."""

from __future__ import annotations

import argparse  # first
from torch.utils.data import DataLoader


def main(args):
    vae, unet, noise_scheduler = load(args)
    train_dataloader = DataLoader(dataset, batch_size=2, collate_fn=collate_fn)
    sample_dataloader = DataLoader(samples)
    for epoch in range(2):
        for step, batch in enumerate(train_dataloader):
            latents, noise, timesteps = encode(vae, batch)
            noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
            model_pred = unet(noisy_latents, timesteps)
            loss = ((model_pred - noise) ** 2).mean()
            accelerator.backward(loss)


if __name__ == "__main__":
    main(argparse.Namespace())
'''


def changed(script):
    """The lines that splicing changes, stripped, in order."""
    before, after = script.splitlines(), splice(script, "s.py").splitlines()
    assert len(before) == len(after)
    return [b.strip() for a, b in zip(before, after, strict=True) if a != b]


def test_three_edits_each_on_its_own_line():
    assert changed(SCRIPT) == [
        "import argparse; import mldm_plugin.attach as mldm; mldm.start()  # first",
        "train_dataloader = DataLoader(dataset, batch_size=2, collate_fn=mldm.collate(collate_fn))",
        "accelerator.backward(mldm.loss(loss, locals()))",
    ]
    ast.parse(splice(SCRIPT, "s.py"))


def test_torchs_own_collate_function_is_wrapped_where_the_script_gives_none():
    script = SCRIPT.replace(", batch_size=2, collate_fn=collate_fn", ", batch_size=2")
    assert "DataLoader(dataset, collate_fn=mldm.collate(), batch_size=2)" in splice(script, "s.py")
    script = script.replace("dataset, batch_size=2", "dataset, 2, True")
    assert "DataLoader(dataset, 2, True, collate_fn=mldm.collate())" in splice(script, "s.py")
    script = script.replace("dataset, 2, True", "dataset, 2, True, None, None, 0, stack, True")
    assert "DataLoader(dataset, 2, True, None, None, 0, mldm.collate(stack), True)" in splice(script, "s.py")
    script = SCRIPT.replace("DataLoader(dataset, batch_size=2, collate_fn=collate_fn", "DataLoader(dataset=dataset")
    assert "DataLoader(dataset=dataset, collate_fn=mldm.collate())" in splice(script, "s.py")


def test_a_multi_line_lambda_and_letters_beyond_ascii_keep_their_place():
    script = SCRIPT.replace("collate_fn=collate_fn)", "collate_fn=lambda é: gather(\n        é, 'ü'))")
    script = script.replace("backward(loss)", "backward(loss * 'ö'.count('ö'))")
    ast.parse(splice(script, "s.py"))
    assert "collate_fn=mldm.collate(lambda é: gather(" in splice(script, "s.py")
    assert "é, 'ü')))" in splice(script, "s.py")
    assert "backward(mldm.loss(loss * 'ö'.count('ö'), locals()))" in splice(script, "s.py")


def test_a_form_feed_or_windows_line_ends_do_not_shift_the_edits():
    for script in (SCRIPT.replace("def main", "\f\ndef main"), SCRIPT.replace("\n", "\r\n")):
        ast.parse(splice(script, "s.py"))
        assert "accelerator.backward(mldm.loss(loss, locals()))" in splice(script, "s.py")


def test_cached_latents_are_marked_and_their_loader_is_wrapped_once():
    caching = "    for batch in train_dataloader:\n        latents_cache.append(vae.encode(batch['x']).latent_dist)\n"
    script = SCRIPT.replace("    for epoch in", caching + "    for epoch in")
    assert "latents_cache.append(mldm.cache(vae.encode(batch['x']).latent_dist, locals()))" in changed(script)
    assert splice(script, "s.py").count("mldm.collate(") == 1


def test_an_accelerator_that_is_an_attribute():
    script = SCRIPT.replace("accelerator.backward", "self.accelerator.backward")
    assert "self.accelerator.backward(mldm.loss(loss, locals()))" in splice(script, "s.py")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("accelerator.backward(loss)", "loss.backward()", "there is none"),
        ("accelerator.backward(loss)", "accelerator.backward(loss); accelerator.backward(loss)", "line 19, line 19"),
        ("accelerator.backward", "my_accelerator.backward", "there is none"),
        ("DataLoader(dataset,", "DataLoader(dataset, **more,", "is there a collate_fn?"),
        ("DataLoader(dataset,", "make_loader(dataset,", "one train_dataloader = DataLoader"),
        ("enumerate(train_dataloader)", "enumerate(batches)", "is in no loop over a data loader"),
        ("model_pred", "answer", "found none for model_pred ("),
        ("import argparse", "mldm = 1", "has a variable 'mldm'"),
    ],
)
def test_an_unknown_layout_says_which_place_was_not_found(old, new, message):
    with pytest.raises(ScriptError) as error:
        splice(SCRIPT.replace(old, new), "train.py")
    assert message in str(error.value)
    assert str(error.value).startswith("train.py")
    assert "docs/attach.md" in str(error.value) or "patched already" in str(error.value)


def test_a_spliced_script_is_not_spliced_again():
    with pytest.raises(ScriptError, match="patched already"):
        splice(splice(SCRIPT, "s.py"), "s.py")


def test_patch_shows_a_diff_and_writes_beside(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    shown = CliRunner().invoke(main, ["patch", str(script)])
    assert shown.exit_code == 0
    assert shown.output == diff(SCRIPT, splice(SCRIPT, str(script)), str(script))
    assert [line[0] for line in shown.output.splitlines()].count("+") == 4  # three edits, and the header
    assert script.read_text(encoding="utf-8") == SCRIPT

    assert CliRunner().invoke(main, ["patch", str(script), "--write"]).exit_code == 0
    assert (tmp_path / "train_mldm.py").read_text(encoding="utf-8") == splice(SCRIPT, "train.py")
    again = CliRunner().invoke(main, ["patch", str(script), "--write"])
    assert again.exit_code == 1
    assert "exists already" in again.output


def test_patch_of_what_is_no_script(tmp_path):
    assert "cannot be read" in CliRunner().invoke(main, ["patch", str(tmp_path / "none.py")]).output
    (tmp_path / "broken.py").write_text("def (", encoding="utf-8")
    assert "is not Python" in CliRunner().invoke(main, ["patch", str(tmp_path / "broken.py")]).output


@needs_examples
def test_every_example_of_diffusers_attaches_or_says_why_not():
    """All scripts that train with accelerate; the table in docs/attach.md is made in the same way."""
    attached = 0
    for path in sorted(Path(EXAMPLES).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "accelerator.backward" not in text:
            continue
        try:
            spliced = splice(text, path.name)
        except ScriptError:
            continue
        compile(spliced, path.name, "exec")
        assert spliced.count("\n") == text.count("\n")
        assert spliced.count("mldm.loss(") == 1
        attached += 1
    assert attached > 60
