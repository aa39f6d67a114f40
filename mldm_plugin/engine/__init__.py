"""One training step, from the host's tensors to the mixed loss.

step.py             what the host loop hands over
schedule.py         noise levels: the clean estimate, the signal-to-noise ratio, the gate
term.py             one loss with its weight and gate
early_backward.py   the losses on gated images, with their gradient taken at once
report.py           what a step did
stack.py            all of it: estimate, gate, evaluate, mix, report
"""
