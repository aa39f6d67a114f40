"""A weight that says how strong a loss's gradient is, instead of a number that is right for one network alone.

With `balance: gradient` the loss j enters the mix multiplied by a factor s_j that makes its gradient at the network's
output as long as the plain loss's, on the images that it reaches:

    s_j = H / G,   H ← β H + Σ ‖∂b_i/∂p_i‖,   G ← β G + Σ ‖∂L_ij/∂p_i‖

at each reading of the audit (audit.py) in which the loss was measured, the sums being over the images it was measured
on. So its weight λ_j is, in the additive mix, the length of its gradient in those of the plain loss's; in the convex
one, where b_i keeps 1 − Σ_j λ_j, the share of the gradients' lengths that it has. Until it has been measured it weighs
nothing, and the plain loss keeps what would be its own.

s_j is a constant of the steps between two readings, so the gradient is that of a loss with fixed weights.
"""

from __future__ import annotations

# The last ten readings count for two thirds: a reading may be of one picture, and norms at t = 20 and t = 100 differ
# fourfold (docs/evidence_protocol.md). Chosen.
DECAY = 0.9


class Balance:
    """s of one loss, from what was measured of it.

    Attributes:
        plain, alone: H and G.
    """

    def __init__(self, plain: float = 0.0, alone: float = 0.0) -> None:
        self.plain, self.alone = plain, alone

    @property
    def factor(self) -> float:
        """s; 0 while nothing has been measured."""
        return self.plain / self.alone if self.alone > 0 else 0.0

    def learn(self, plain: float, alone: float) -> None:
        """A reading: sums of the norms over the images measured.

        >>> balance = Balance()
        >>> balance.learn(6.0, 2.0)
        >>> balance.factor
        3.0
        >>> balance.learn(1.0, 1.0)
        >>> round(balance.factor, 4)  # (0.9 · 6 + 1) / (0.9 · 2 + 1)
        2.2857
        """
        if alone > 0:
            self.plain, self.alone = DECAY * self.plain + plain, DECAY * self.alone + alone
