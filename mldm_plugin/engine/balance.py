"""A weight that says how strong a loss's gradient is, instead of a number that is right for one network alone.

With `balance: gradient` the loss j enters the mix multiplied by a factor s_j that makes its gradient at the network's
output as long as the plain loss's, on the images that it reaches:

    s_j = H / G,   H ← β H + Σ ‖∂b_i/∂p_i‖,   G ← β G + Σ ‖∂L_ij/∂p_i‖

at each reading of the audit (audit.py) in which the loss was measured, the sums being over the images it was measured
on. So its weight λ_j is, in the additive mix, the length of its gradient in those of the plain loss's; in the convex
one, where b_i keeps 1 − Σ_j λ_j, the share of the gradients' lengths that it has. Until it has been measured on enough
images it weighs nothing, and the plain loss keeps what would be its own.

s_j is a constant of the steps between two readings, so the gradient is that of a loss with fixed weights.
"""

from __future__ import annotations

from collections.abc import Sequence

# The last ten readings count for two thirds. A reading may be of one picture, and LPIPS' gradient at t of 700 and more
# is a hundred times as long as below 100 (docs/heard.md), so the factor of a wide gate moves by a factor of two for
# ever. Chosen.
DECAY = 0.9
LEAST_PICTURES = 4  # that a factor rests on: of one, it may be forty times too large. Chosen


class Balance:
    """s of one loss, from what was measured of it.

    Args:
        least: pictures that a factor rests on.

    Attributes:
        plain, alone: H and G.
        pictures: how many they are of, until there are enough.
    """

    def __init__(self, least: int = LEAST_PICTURES) -> None:
        self._least = least
        self.plain, self.alone, self.pictures = 0.0, 0.0, 0

    @property
    def factor(self) -> float:
        """s; 0 while too little has been measured."""
        return self.plain / self.alone if self.alone > 0 and self.pictures >= self._least else 0.0

    def learn(self, plain: float, alone: float, pictures: int) -> None:
        """A reading: sums of the norms over the images measured, and their number.

        >>> balance = Balance()
        >>> balance.learn(6.0, 2.0, 3)
        >>> balance.factor
        0.0
        >>> balance.learn(1.0, 1.0, 1)
        >>> round(balance.factor, 4)  # (0.9 · 6 + 1) / (0.9 · 2 + 1)
        2.2857
        """
        if alone > 0:
            self.plain, self.alone = DECAY * self.plain + plain, DECAY * self.alone + alone
            self.pictures += pictures

    def state(self) -> list[float]:
        """For `resume`."""
        return [self.plain, self.alone, self.pictures]

    def resume(self, state: Sequence[float]) -> None:
        """Go on from what `state` gave."""
        self.plain, self.alone, self.pictures = state[0], state[1], int(state[2])
