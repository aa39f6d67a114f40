"""Pictures as a metric sees them, and the metrics of a hook."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F


def seen_picture(seed=0, size=(80, 96), faces=2, people=1):
    """A smooth random picture with `faces` boxes of faces and `people` boxes of people."""
    g = torch.Generator().manual_seed(seed)
    image = F.interpolate(torch.rand(1, 3, 10, 12, generator=g), size=size, mode="bilinear")[0] * 2 - 1
    boxes = [(10.0 + 30 * k, 12.0, 30.0 + 30 * k, 40.0) for k in range(faces)]
    return SimpleNamespace(
        image=image,
        faces=[SimpleNamespace(box=box, score=0.9) for box in boxes],
        people=[torch.tensor([5.0 + 20 * k, 4.0, 45.0 + 20 * k, 78.0]) for k in range(people)],
    )


def register(hook):
    """What `hook` registers: name → metric."""
    entries = {}
    hook(entries.__setitem__)
    return entries
