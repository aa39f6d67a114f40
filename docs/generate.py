"""Writes the parts of the documentation that are made from the code: `python docs/generate.py`.

A part stands between `<!-- generated: NAME … -->` and `<!-- end -->`. tests/test_docs.py compares.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml

sys.path.append(str(Path(__file__).parent))  # tests load this file by its path

import evidence
import faces_claims
import metric_tables

from mldm_plugin.attach.flags import FLAGS
from mldm_plugin.cli import main
from mldm_plugin.cli.describe import describe_options
from mldm_plugin.cli.new_loss import render
from mldm_plugin.cli.presets import summary
from mldm_plugin.plugins import load_plugins
from mldm_plugin.preset import Preset, built_in_presets, load_preset
from mldm_plugin.project.models import known_model
from mldm_plugin.project.photos import Photo
from mldm_plugin.project.plan import decide
from mldm_plugin.project.scale import OwnPhotos
from mldm_plugin.reproduce.run import Reproduction
from mldm_plugin.training.command_line import TRAINERS
from mldm_plugin.training.flags import TrainerFlags

ROOT = Path(__file__).parent.parent
WIDE = 110  # letters of a line of commands
PART = re.compile(r"(<!-- generated: ([^\n]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """README.md and every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def regenerate(text: str) -> str:
    """A page with its generated parts written anew."""
    return PART.sub(lambda part: part[1] + make(part[2]) + part[3], text)


def make(request: str) -> str:
    """One part: the name of a maker and its arguments."""
    name, *arguments = request.split()
    return MAKERS[name](*arguments)


def presets_table(group: str) -> str:
    """The presets of a group, with their numbers and what they are; of those by task, the scripts they set up."""
    by_task = group == "task"
    rows = ["| preset | plain loss | mix | losses | T | what it is |" + (" scripts |" if by_task else "")]
    rows.append("|---|---|---|---|---|---|" + "---|" * by_task)
    for name, path in sorted(built_in_presets(group).items()):
        preset = load_preset(name)
        cells = [f"`{name}`", _base(preset), _mix(preset), _weights(preset), _gates(preset), summary(path)]
        cells += [", ".join(f"`{script}.py`" for script in preset.training)] if by_task else []
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _base(preset: Preset) -> str:
    options = ", ".join(f"{k} = {v:g}" for k, v in preset.base.options.items())
    return {"none": "as it is"}.get(preset.base.weighting, f"{preset.base.weighting} ({options})")


def _mix(preset: Preset) -> str:
    return preset.combine if preset.losses else "–"


def _weights(preset: Preset) -> str:
    terms = (f"`{n}` {s.weight:g}" + (" (detached)" if s.detach else "") for n, s in preset.losses.items())
    return ", ".join(terms) or "–"


def _gates(preset: Preset) -> str:
    limits = {"all" if s.max_timestep is None else str(s.max_timestep) for s in preset.losses.values()}
    return ", ".join(sorted(limits)) or "–"


def options_table(name: str) -> str:
    """The options of one loss or base weighting."""
    plugins = load_plugins()
    table = plugins.losses if name in plugins.losses.entries else plugins.base_weightings
    rows = ["| option | values | default | meaning |", "|---|---|---|---|"]
    for option in describe_options(table[name]):
        cells = (f"`{option.name}`", option.type, option.default, option.meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def pair_table(name: str) -> str:
    """The estimates that show what a loss sees (docs/pairs.py), with what it says of each."""
    found = json.loads((ROOT / "docs" / "losses" / "pairs.json").read_text(encoding="utf-8"))[name]
    labels = [f"`{label}`" if label == name else label for label in found["values"]]
    rows = [f"![What {name} sees](../images/seen_{name}.jpg)\n", f"| estimate | {' | '.join(labels)} |"]
    rows.append("|---" * (len(labels) + 1) + "|")
    for k, words in enumerate(found["words"]):
        rows.append(f"| {words} | {' | '.join(f'{of[k]:g}' for of in found['values'].values())} |")
    return "\n".join(rows) + "\n"


def command_line() -> str:
    """`--help` of every command."""
    return "\n".join(_help(main, click.Context(main, info_name="mldm", terminal_width=90, **_SETTINGS), 2))


_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


def _help(command: click.Command, context: click.Context, level: int) -> list[str]:
    parts = [f"{'#' * level} `{context.command_path}`\n\n```text\n{command.get_help(context)}\n```\n"]
    for name, inner in getattr(command, "commands", {}).items():
        parts += _help(inner, click.Context(inner, context, name, terminal_width=90), level + 1)
    return parts


def written_loss(name: str) -> str:
    """The loss that `mldm new-loss` writes."""
    return f"```python\n{render('template_loss.py', name)}```\n"


def flags_table() -> str:
    """The flags of all trainers, with the default of each; ours first."""
    heads = [f"`{kind.script}`" for kind in TRAINERS]
    rows = ["| flag | " + " | ".join(heads) + " | meaning |", "|---|" + "---|" * len(TRAINERS) + "---|"]
    flags = {name: kind for kind in TRAINERS for name in kind.ours()}
    for name, kind in {**flags, **{n: k for k in TRAINERS for n in k.theirs() if n not in flags}}.items():
        meaning = kind.meaning(name).replace("|", "\\|")
        rows.append("| " + " | ".join((f"`--{name}`", *(_default(kind, name) for kind in TRAINERS), meaning)) + " |")
    return "\n".join(rows) + "\n"


def _default(kind: type[TrainerFlags], name: str) -> str:
    if name not in kind.model_fields:
        return "–"
    field = kind.model_fields[name]
    if field.annotation is bool:
        return "off"
    return "unset" if field.is_required() or field.default is None else f"`{field.default}`"


def attach_flags() -> str:
    """The plugin's flags beside a script's."""
    rows = ["| flag | meaning |", "|---|---|"]
    rows += [f"| `{name}` | {options['help']} |" for name, options in FLAGS.items()]
    return "\n".join(rows) + "\n"


def attach_runs() -> str:
    """Diffusers' scripts that were seen to train, by folder."""
    runs = yaml.safe_load((ROOT / "docs" / "attach_runs.yaml").read_text(encoding="utf-8"))
    scripts: dict[str, list[str]] = {}
    for path, outcome in runs.items():
        if outcome.startswith("trains"):
            folder, _, name = path.rpartition("/")
            scripts.setdefault(folder, []).append(f"`{name}`{outcome.removeprefix('trains').replace(', ', ' ')}")
    rows = ["| folder of `examples/` | scripts seen to train |", "|---|---|"]
    rows += [f"| {folder} | {', '.join(names)} |" for folder, names in scripts.items()]
    return "\n".join(rows) + "\n"


def own_tests() -> str:
    """What diffusers' own tests of its examples gave: how many, by file, then each case."""
    recorded = yaml.safe_load((ROOT / "docs" / "attach_own_tests.yaml").read_text(encoding="utf-8"))
    seen = dict(sorted(recorded.items(), key=lambda case: case[0].partition("::")[0]))
    kinds = ("passes", "refused", "fails through us", "fails without us", "skips itself")
    counts = {case.partition("::")[0]: dict.fromkeys(kinds, 0) for case in seen}
    for case, outcome in seen.items():
        counts[case.partition("::")[0]][outcome.partition(":")[0]] += 1
    rows = [f"| test file | {' | '.join(kinds)} |", "|---" * (1 + len(kinds)) + "|"]
    rows += [f"| `{file}` | {' | '.join(str(n or '–') for n in each.values())} |" for file, each in counts.items()]
    totals = [str(sum(each[kind] for each in counts.values())) for kind in kinds]
    rows += [f"| **{len(seen)} cases** | {' | '.join(totals)} |", ""]
    for file in counts:
        rows += [f"## {file}", "", "| case | outcome |", "|---|---|"]
        rows += [f"| `{case.rpartition('::')[2]}` | {seen[case]} |" for case in seen if case.startswith(f"{file}::")]
        rows.append("")
    return "\n".join(rows[:-1]) + "\n"


def dry_run(model: str) -> str:
    """What `mldm train --dry-run` prints of ten photographs."""
    known, home = known_model(model), Path("/home/you")
    photos = [Photo(f"{number}.jpg", (1500, 1500), faces=[400.0], people=[0]) for number in range(10)]
    run = decide(home / "photos", photos, "anna woman", known, known.pipeline).run
    scale = OwnPhotos(home / "anna", run.model_copy(update={"script": f"{known.script}.py"}))
    commands = Reproduction(scale.recipe(), scale, seeds=1, prompts=0).plan().splitlines()
    return "```text\n" + "\n".join(map(_wrapped, commands)) + "\n```\n"


def _wrapped(command: str) -> str:
    """On several lines, as a shell takes it; the comment at its end above it."""
    typed, _, comment = command.partition("   # ")
    rows = [""]
    for flag in re.split(r" (?=--)", typed):
        if len(rows[-1]) + len(flag) > WIDE:
            rows.append("   ")
        rows[-1] += f" {flag}" if rows[-1] else flag
    return "\n".join([*([f"# {comment}"] if comment else []), " \\\n".join(rows)])


MAKERS: dict[str, Callable[..., str]] = {
    "presets": presets_table,
    "options": options_table,
    "pair": pair_table,
    "cli": command_line,
    "flags": flags_table,
    "new-loss": written_loss,
    "attach-flags": attach_flags,
    "attach-runs": attach_runs,
    "own-tests": own_tests,
    "dry-run": dry_run,
    "claims": evidence.claims_table,
    "arms": evidence.arms_table,
    "seconds": evidence.seconds_table,
    "gradients": evidence.gradients_table,
    "faces-claims": faces_claims.claims_table,
    "faces-values": faces_claims.values_table,
    "metrics": metric_tables.metrics_table,
    "card": metric_tables.card_table,
    "one_step": metric_tables.one_step_table,
    "detectors": metric_tables.detectors_table,
    "seen": metric_tables.seen_table,
    "strengths": metric_tables.strengths_table,
    "sizes": metric_tables.sizes_table,
    "alarms": metric_tables.alarms_table,
    "sets": metric_tables.sets_table,
    "draws": metric_tables.draws_table,
    "copies": metric_tables.copies_table,
}


if __name__ == "__main__":
    for page in pages():
        old = page.read_text(encoding="utf-8")
        if (new := regenerate(old)) != old:
            page.write_text(new, encoding="utf-8")
