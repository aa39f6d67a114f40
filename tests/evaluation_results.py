"""What metrics.json holds, made by hand, with small pictures beside it."""

import random

from PIL import Image

NASTY = "</script><img src=x onerror=alert(1)> & $x_1$ \u2028 {{script}} 名前"
T = [20, 100, 400, 900]


def estimate(value, width=0.1, **more):
    if value is None:
        return {"value": None, "low": None, "high": None, "p": None, "error": None, "effect": None, **more}
    low, high = (None, None) if width is None else (value - width, value + width)
    return {"value": value, "low": low, "high": high, "p": 0.02, "error": 0.05, "effect": 0.6, **more}


def difference(value, width=0.1):
    shown = value is not None and width is not None and abs(value) > width
    verdict = ("better" if value > 0 else "worse") if shown else "not shown"
    more = {"p_holm": 0.04, "words": "medium", "verdict": verdict, "needed": None if shown else 120}
    return estimate(value, width, **more)


def metric(name, kind, models, values, width=0.1, **more):
    means = {m: None if not any(v is not None for v in values[m]) else mean(values[m]) for m in models}
    first = means[models[0]]
    gaps = {m: None if means[m] is None or first is None else means[m] - first for m in models[1:]}
    return {
        "name": name,
        "title": f"{name.replace('_', ' ')} of it",
        "better": "larger",
        "kind": kind,
        "networks": [],
        "trained_on": {},
        "too_few": False,
        "cases": len(values[models[0]]),
        "rows": {m: len(values[m]) + k for k, m in enumerate(models)} if kind == "set" else {},
        "values": {} if kind == "set" else values,
        "models": {m: estimate(means[m], width) for m in models},
        "differences": {m: difference(gap, width) for m, gap in gaps.items()},
        **more,
    }


def mean(values):
    known = [v for v in values if v is not None]
    return sum(known) / len(known)


def make_results(out, models=("base", "plain", "mldm"), cases=5, size=(40, 30), noise=False):
    """The results of an evaluation of `cases` prompts, the first of them a nasty one."""
    dice = random.Random(0)
    keys = [f"{i:05d}" for i in range(cases)]
    values = {m: [k + dice.random() for _ in keys] for k, m in enumerate(models)}
    kinds = {"likeness": "picture", "sharp": "picture", "distance": "set", "one_step_error": "one_step"}
    lines = {m: [estimate(1 / (1 + k + t)) for t in T] for k, m in enumerate(models)}
    pictures = {m: {key: paint(out, f"pictures/{m}/{key}-0.png", size, dice, noise) for key in keys} for m in models}
    return {
        "version": 1,
        "made": "2026-11-26T12:33:34+00:00",
        "command": "mldm evaluate --model a=b --out somewhere",
        "versions": {"mldm-plugin": "0.1.0", "torch": "2.6.0"},
        "sampling": {"sampler": "dpm++", "steps": 20, "guidance": 3.0, "repetitions": 1, "seed": 0, "resolution": None},
        "models": [{"name": m, "runs": [{"what": m, "kind": "lora", "base": "x", "digest": "ab12"}]} for m in models],
        "failed": {},
        "cases": [
            {"key": key, "text": NASTY if i == 0 else f"a person, number {i}", "people": 1, "row": i}
            for i, key in enumerate(keys)
        ],
        "photographs": 8,
        "metrics": [metric(name, kind, models, values) for name, kind in kinds.items()],
        "warnings": [],
        "notes": [],
        "missing": {},
        "curves": [
            {
                "name": "one_step_error",
                "title": "error of ε",
                "what": "squared error",
                "t": T,
                "models": lines,
                "differences": {m: lines[m] for m in models[1:]},
            }
        ],
        "pictures": pictures,
        "faces": {m: {key: [[2.0, 2.0, 20.0, 22.0]] for key in keys} for m in models},
        "photographs_of_cases": {
            key: {"path": paint(out, f"photographs/{key}.png", size, dice, noise), "faces": [[1.0, 1.0, 9.0, 9.0]]}
            for key in keys
        },
    }


def paint(out, path, size, dice, noise):
    (out / path).parent.mkdir(parents=True, exist_ok=True)
    picture = (
        Image.effect_noise(size, 90).convert("RGB") if noise else Image.new("RGB", size, (dice.randrange(256),) * 3)
    )
    picture.save(out / path)
    return path
