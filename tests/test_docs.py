"""The documentation is executed: every code block of README.md and docs/ runs here, or says why it cannot.

A block that cannot run here has a line `<!-- not run: reason -->` right above or below. Blocks of a page run in
order, in one folder and one namespace, which holds what a training loop has at hand (`a_training_loop`). The
pretrained networks are stood in for by random ones. Languages: `python` is executed, `pycon` compared, `console` holds
`$ ` commands and their output, `...` standing for anything, `bash` commands alone; `yaml` must be a preset, `toml`
and `json` must parse. `text` is prose.
"""

import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from mldm_plugin import hookspecs
from mldm_plugin.attach.codemod import splice
from mldm_plugin.cli import main
from mldm_plugin.plugins import load_plugins
from mldm_plugin.preset import Preset, load_preset
from mldm_plugin.training.command_line import TRAINERS, parse, resolve

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(
    r"^(?P<above><!-- not run: [^\n]+ -->\n\n?)?"
    r"```(?P<language>\S*)\n(?P<text>.*?)^```$"
    r"(?P<below>\n\n?<!-- not run: [^\n]+ -->$(?!\n\n?```))?",
    re.M | re.S,
)
FENCE = re.compile(r"^```", re.M)


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    not_run: bool


def blocks_of(page):
    text = page.read_text(encoding="utf-8")
    found = [
        Block(m["language"], m["text"], text[: m.start("text")].count("\n") + 1, bool(m["above"] or m["below"]))
        for m in BLOCK.finditer(text)
    ]
    assert len(FENCE.findall(text)) == 2 * len(found), f"{page}: a fence that is not understood"
    return found


def load_generate():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generate()
PAGES = generate.pages()


def title(page):
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def pipeline():
    from mldm_plugin.people_mini import PIPELINE

    return PIPELINE


@pytest.fixture
def a_training_loop(pipeline):
    """What a loop of diffusers' scripts has at hand when it has just computed its loss."""
    from diffusers import AutoencoderKL, DDPMScheduler
    from skimage.data import astronaut, cat

    vae = AutoencoderKL.from_pretrained(pipeline, subfolder="vae").requires_grad_(False)
    noise_scheduler = DDPMScheduler.from_pretrained(pipeline, subfolder="scheduler")
    generator = torch.Generator().manual_seed(0)
    noise, error = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    pictures = [
        np.asarray(Image.fromarray(astronaut()).resize((64, 64))),
        np.asarray(Image.fromarray(cat()).resize((64, 64))),
    ]
    pixel_values = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
    latents = vae.encode(pixel_values).latent_dist.mode() * vae.config.scaling_factor
    timesteps = torch.tensor([50, 700])
    model_pred = (noise + 0.3 * error).requires_grad_()
    person_mask = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    person_mask[:, :, 16:60, 10:40] = 1
    batch = {
        "pixel_values": pixel_values,
        "person_mask": person_mask,
        "face_boxes": [torch.tensor([[14.0, 18.0, 34.0, 42.0]]), torch.zeros(0, 4)],
    }
    return {
        "vae": vae,
        "noise_scheduler": noise_scheduler,
        "latents": latents,
        "noise": noise,
        "noisy_latents": noise_scheduler.add_noise(latents, noise, timesteps),
        "timesteps": timesteps,
        "model_pred": model_pred,
        "target": noise,
        "loss": torch.nn.functional.mse_loss(model_pred, noise),
        "batch": batch,
        **batch,
        "preset": "mldm",
        "steps_done": 1,
        "accelerator": SimpleNamespace(backward=lambda loss: loss.backward()),
    }


@pytest.fixture
def no_downloads(monkeypatch, tmp_path):
    """Random networks where a page asks for pretrained ones, and an empty cache."""
    lpips_network = importlib.import_module("mldm_plugin.perceptual.lpips_network")
    face_networks = importlib.import_module("mldm_plugin.perceptual.face_networks")
    masked_lpips = importlib.import_module("mldm_plugin.hooks.masked_lpips")
    face = importlib.import_module("mldm_plugin.hooks.face")
    trunk = lpips_network.LPIPSNetwork
    monkeypatch.setattr(masked_lpips, "LPIPSNetwork", lambda name, weights: trunk(name, "random"))
    monkeypatch.setattr(face, "FaceFeatures", lambda name, weights: face_networks.FaceFeatures(name, "random"))
    monkeypatch.setenv("MLDM_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(importlib.import_module("datasets").config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_block_runs_or_says_why_not(page, a_training_loop, no_downloads, tmp_path, monkeypatch):
    folder = tmp_path / "reader"
    folder.mkdir()
    monkeypatch.chdir(folder)
    namespace = {**a_training_loop, "__name__": "page", "__file__": str(folder / "page.py")}
    for block in blocks_of(page):
        run = RUNNERS.get(block.language)
        where = f"{title(page)}, line {block.line}"
        assert run, f"{where}: a block of language {block.language!r} is not run; see the languages in this file"
        if not block.not_run:
            run(block, namespace, where)
        elif block.language in ("console", "bash"):
            check_commands(block)


def run_python(block, namespace, where):
    exec(compile(block.text, where, "exec"), namespace)


def run_session(block, namespace, where):
    test = doctest.DocTestParser().get_doctest(block.text, namespace, where, where, block.line)
    failures = io.StringIO()
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=failures.write, clear_globs=False)
    assert result.failed == 0, failures.getvalue()
    namespace.update(test.globs)


def run_console(block, namespace, where):
    for command, expected in commands_of(block):
        status, output = run_command(command, where)
        assert status == 0, f"{where}: {command} ended with {status}:\n{output}"
        agrees = doctest.OutputChecker().check_output(expected, output, doctest.ELLIPSIS)
        assert not expected or agrees, f"{where}: {command} printed\n{output}\nand not\n{expected}"


def run_command(command, where):
    name, *arguments = shlex.split(command, comments=True)
    if name == "mldm":
        result = CliRunner().invoke(main, arguments)
        return result.exit_code, result.output
    assert (name, arguments[:2]) == ("python", ["-m", "pytest"]), f"{where}: {command!r} is not run; mark its block"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout + done.stderr


def commands_of(block):
    """Each command with its output; a line that ends in a backslash goes on in the next."""
    text = block.text.replace("\\\n", " ")
    if block.language == "bash":
        yield from ((line, "") for line in text.splitlines() if line.strip())
        return
    assert text.startswith("$ "), f"line {block.line}: a console block starts with '$ '"
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def check_commands(block):
    """What cannot be run can still be parsed: the trainer's flags and preset, our commands, make's targets."""
    for command, _ in commands_of(block):
        words = shlex.split(command, comments=True)
        trainer = next((t for t in TRAINERS if t.script in words), None)
        if trainer is not None and "--pretrained_model_name_or_path" in words:
            given = parse(trainer, words[words.index(trainer.script) + 1 :])
            resolve(trainer, given, load_preset(given["preset"]).training if "preset" in given else {})
        elif words[0] == "mldm":
            find_command(words[1:])
        elif words[0] == "make":
            targets = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert all(f"\n{target}:" in targets for target in words[1:]), command


def find_command(words):
    """The command that these words name; KeyError if there is none."""
    command = main
    for word in words:
        if hasattr(command, "commands"):
            command = command.commands[word]
    return command


def run_yaml(block, namespace, where):
    preset = Path(f"block-{block.line}.yaml")
    preset.write_text(block.text, encoding="utf-8")
    plugins = load_plugins([str(p) for p in sorted(Path().glob("*.py")) if not p.name.startswith("test_")])
    assert load_preset(preset, plugins=plugins) != Preset(), f"{where}: a preset that says nothing"


def run_diff(block, namespace, where):
    """The added lines are what splicing makes of the removed ones, in a script that has them in their places."""
    removed, added = ([line[1:] for line in block.text.splitlines() if line[0] == sign] for sign in "-+")
    script = [
        *(removed[0], "vae = noise_scheduler = latents = noise = noisy_latents = timesteps = model_pred = None"),
        *("train_dataloader = DataLoader(", "        dataset,", removed[1], ")"),
        *("for batch in train_dataloader:", "        with accelerator.accumulate():", removed[2]),
    ]
    spliced = splice("\n".join(script), where).split("\n")
    assert [line for line in spliced if line not in script] == added, where


RUNNERS = {
    "diff": run_diff,
    "python": run_python,
    "pycon": run_session,
    "console": run_console,
    "bash": run_console,
    "yaml": run_yaml,
    "toml": lambda block, namespace, where: tomllib.loads(block.text),
    "json": lambda block, namespace, where: json.loads(block.text),
    "text": lambda block, namespace, where: None,
}


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_generated_parts_are_up_to_date(page):
    text = page.read_text(encoding="utf-8")
    assert generate.regenerate(text) == text, "run `python docs/generate.py`"


def test_the_generated_parts_are_there():
    def parts(name):
        return {m[2] for m in generate.PART.finditer((DOCS / name).read_text(encoding="utf-8"))}

    assert parts("cli.md") == {"cli", "flags"}
    assert parts("presets.md") == {"presets task", "presets study", "presets loss", "presets paper"}
    plugins = load_plugins()
    for name in (*plugins.losses.entries, *plugins.base_weightings.entries):
        wanted = {f"options {name}", *([f"pair {name}"] if name in DRAWN else [])}
        assert parts(f"losses/{name}.md") == wanted, f"docs/losses/{name}.md: no card, no options or no picture"


def test_every_condition_encoder_has_a_card_with_its_options():
    for name, encoder in load_plugins().condition_encoders.entries.items():
        text = (DOCS / "conditions" / f"{name}.md").read_text(encoding="utf-8")
        options = set(inspect.signature(encoder).parameters) - {"width"}
        assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == options, name


def test_every_metric_has_a_card_and_a_row():
    """A card for each file of hooks/metrics, and its metrics in the table and in the pages of what they see."""
    rows = dict(re.findall(r"^\| `(\w+)` .*\((\w+)\.md\) \|$", (DOCS / "metrics/README.md").read_text("utf-8"), re.M))
    assert rows.keys() == load_plugins().metrics.entries.keys()
    assert set(rows.values()) == {path.stem for path in (ROOT / "hooks/metrics").glob("*.py")} - {"__init__"}
    for name, card in rows.items():
        text = (DOCS / "metrics" / f"{card}.md").read_text(encoding="utf-8")
        assert f"`{name}`" in text, f"docs/metrics/{card}.md: nothing on {name}"
        assert "❗" in text


@pytest.mark.parametrize("card", sorted((DOCS / "metrics").glob("*.md")), ids=title)
def test_the_card_of_a_metric_says_what_it_does_not_see_its_least_n_its_cost_and_its_licence(card):
    if card.stem in ("README", "sensitivity"):
        return
    text = card.read_text(encoding="utf-8")
    for asked in (
        r"[Ss]ee",
        r"not see|[Hh]ardly|❗ Sees no",
        r"\*Least N\.\*",
        r"\bms\b|Cost|cost",
        r"[Ll]icence|MIT|BSD|Apache|CC0|[Nn]o network",
    ):
        assert re.search(asked, text), f"{card.name} has nothing like {asked}"


def test_what_an_evaluation_measures_without_a_plugin_has_a_card_too():
    """The quantities of one step, here and in the page on evaluation in training; the metric of drawn people."""
    from mldm_plugin.evaluation.quantities import QUANTITIES
    from mldm_plugin.people_mini import metrics

    for name, prefix in (("metrics/one_step.md", ""), ("evaluation_in_training.md", "evaluate/")):
        text = (DOCS / name).read_text(encoding="utf-8")
        assert all(f"| `{prefix}{one.name}` | {one.what} |" in text for one in QUANTITIES)
    entries = {}
    metrics.register_metrics(entries.__setitem__)
    cards = {path.stem for path in (DOCS / "metrics").glob("*.md")}
    assert entries.keys() <= cards
    readme = (DOCS / "metrics/README.md").read_text(encoding="utf-8")
    assert all(f"({name}.md)" in readme for name in ("one_step", *entries))


def test_nothing_that_the_readme_shows_is_random():
    """No preset that it names is (tests/test_preset.py), nor does it ask for random weights itself."""
    assert not re.search(r"\brandom\b", (ROOT / "README.md").read_text(encoding="utf-8"), re.I)


SECTIONS = ["Use", "Options", "Suggested values", "Cost", "Marks", "Attribution"]
DRAWN = json.loads((DOCS / "losses" / "pairs.json").read_text(encoding="utf-8"))  # what docs/pairs.py shows


@pytest.mark.parametrize("card", sorted((DOCS / "losses").glob("*.md")), ids=title)
def test_a_card_has_all_its_parts(card):
    text = card.read_text(encoding="utf-8")
    plugins = load_plugins()
    assert card.stem in {**plugins.losses.entries, **plugins.base_weightings.entries}
    shown = ["What it sees"] if card.stem in DRAWN else []
    assert re.findall(r"^#+ (.+)$", text, re.M) == [card.stem, *shown, *SECTIONS]
    assert "✅" in text
    assert "❗" in text


def hook_signatures():
    return {
        f"{name}({', '.join(inspect.signature(hook).parameters)})"
        for name, hook in inspect.getmembers(hookspecs, inspect.isfunction)
        if hasattr(hook, "mldm_spec")
    }


def test_every_hook_is_documented_under_its_signature_with_its_sentence():
    text = (DOCS / "plugin_hooks.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## `(.+)`$", text, re.M)) == hook_signatures()
    flat = " ".join(text.split())
    for name, hook in inspect.getmembers(hookspecs, inspect.isfunction):
        if hasattr(hook, "mldm_spec"):
            assert " ".join(inspect.getdoc(hook).split()) in flat, f"{name}: hookspecs.py says something else"


def test_every_hook_is_exercised_by_the_plugin_of_its_page(tmp_path, a_training_loop, caplog):
    """The blocks of plugin_hooks.md are one plugin, and each of its hooks has its effect."""
    from mldm_plugin import DiffusionStep, LossStack

    path = tmp_path / "plugin.py"
    path.write_text("\n".join(b.text for b in blocks_of(DOCS / "plugin_hooks.md")), encoding="utf-8")
    text = yaml.safe_dump(
        {"losses": {"latent_distance": {"weight": 0.5}}, "base": {"weighting": "constant", "value": 2.0}}
    )
    (tmp_path / "latents_only.yaml").write_text(text)
    plugins = load_plugins([str(path)])
    implemented = {caller.name for caller in plugins.manager.get_hookcallers(plugins.manager.get_plugin(str(path)))}
    assert implemented == {signature.partition("(")[0] for signature in hook_signatures()}
    assert plugins.condition_encoders["age"](4)(torch.tensor([[0.3]])).shape == (1, 1, 4)
    loop = a_training_loop
    stack = LossStack.from_preset(
        "latents_only", vae=None, noise_scheduler=loop["noise_scheduler"], plugins=plugins, announce=lambda text: None
    )
    names = ("latents", "noise", "noisy_latents", "timesteps", "model_pred", "target")
    with caplog.at_level("INFO"):
        report = stack(DiffusionStep(**{name: loop[name] for name in names}))
    assert report.ldm.item() == pytest.approx(2 * loop["loss"].item())
    assert report.terms["latent_distance"].gated == 1
    assert "latent_distance at t = [50]" in caplog.text


def test_pages_speak_of_tests_that_exist():
    for page in PAGES:
        for file, test in re.findall(r"`(test_\w+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
            path = ROOT / "tests" / file
            assert path.is_file(), f"{title(page)}: {file}"
            assert f"def {test}(" in path.read_text(encoding="utf-8"), f"{title(page)}: {file}::{test}"


def test_every_defect_of_the_released_code_names_a_test():
    rows = re.findall(r"^\| (\d+) \|.*\| (.+) \|$", (DOCS / "released_code.md").read_text(encoding="utf-8"), re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 16))
    assert all("::test_" in tests for _, tests in rows)


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_between_pages_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#:]*)(?:#[^)]*)?\)", text):
        assert not target or (page.parent / target).exists(), f"{title(page)} links to {target}"
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", text):
        headings = re.findall(r"^#+ (.+)$", (page.parent / target if target else page).read_text("utf-8"), re.M)
        assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def test_a_block_that_is_not_run_and_not_marked_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ accelerate launch x.py\n```\n\n<!-- not run: no GPU -->\n```console\n$ x\n```\n"
        "Text.\n```bash\nx\n```\n<!-- not run: no GPU -->\n"
    )
    unmarked, above, below = blocks_of(page)
    assert not unmarked.not_run
    assert above.not_run
    assert below.not_run
    with pytest.raises(AssertionError, match="mark its block"):
        run_console(unmarked, {}, "page.md")
