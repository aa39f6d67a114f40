"""One training step, from the host's tensors to the mixed loss.

stack.py            the step from call to report, in the order of the files below
step.py             what the host loop hands over
schedule.py         noise levels: the clean estimate (direct.py, ddim.py: others), the signal-to-noise ratio, the gate
gates.py            which images each term applies to
early_backward.py   the terms on those images, with their gradient taken at once
audit.py            each term's own gradient, now and then, by ranges.py of t; heard.py says what it means, balance.py
                    weighs by it
pictures.py         what a term looks at: decoded by what, in which precision, how many at a time
term.py             one loss with its weight and T
mix.py              eq. 3; host_loss.py: what the host's own loss makes of each image
report.py           what the step did, and numbers.py its log

start_up.py         the first steps: proof.py that each loss trains, host_checks.py that the host means what we think
"""
