"""What a step costs, measured beside what others do: `mldm bench`.

sizes.py        which networks
host.py         a host's loop with random weights, its batch and its step
others.py       how others do what the plugin does, written plainly
candidates.py   what is measured, by subject
compare.py      candidates must give the same results before they are timed
measure.py      time and memory, in turns, and the mean step
count.py        operations counted without running anything
goals.py        the ratios that matter, and whether they hold
report.py       tables and JSON
plot.py         the steps as bars
run.py          all of it in order
"""
