"""A third party's metrics in one file: the brightness of a picture, the red of a set, and one that is broken."""

import torch

from mldm_plugin import hookimpl


class Brightness:
    """The mean of all pixels."""

    title = "brightness"
    better = "larger"
    asks = "pictures"

    def __call__(self, picture):
        return float(picture.image.mean())


class Redness:
    """How far the mean red of drawn pictures is from that of photographs."""

    title = "redness"
    better = "smaller"

    def features(self, picture):
        return picture.image[:1].mean().view(1, 1)

    def distance(self, made, real):
        return float((made.mean() - real.mean()).abs())


class Broken:
    """Fails on every picture."""

    title = "broken"
    better = "larger"
    asks = "nothing"

    def __call__(self, picture):
        raise RuntimeError("no such thing")


class Never:
    """Asks for what no case has."""

    title = "never"
    better = "larger"
    asks = "pictures of unicorns"

    def __call__(self, picture):
        return None


class Pairs:
    """Likeness to pictures of a person that it asks for."""

    title = "person"
    better = "smaller"
    asks = "pictures"

    def __init__(self, *, person):
        self.known = torch.stack([picture.image.mean() for picture in person]).mean()

    def __call__(self, picture):
        return float((picture.image.mean() - self.known).abs())


@hookimpl
def register_metrics(register):
    for name, metric in (
        ("brightness", Brightness),
        ("redness", Redness),
        ("broken", Broken),
        ("never", Never),
        ("pairs", Pairs),
    ):
        register(name, metric)
