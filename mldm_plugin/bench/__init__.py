"""What a step costs, measured beside what others do: `mldm bench`.

sizes.py         which networks
networks.py      built with random weights
workload.py      a batch, and a training step on it
strategies.py    how others decide which images to decode, written plainly
distances.py     masked LPIPS as others compute it, written plainly
candidates.py    what is measured, by subject
agreement.py     candidates must give the same results before they are timed
measure.py       time and memory, interleaved
expected.py      from times by number of gated images to the mean step
count.py         operations counted without running anything
rows.py goals.py tables, and the ratios that matter
record.py plot.py the run as JSON and as a picture
run.py           all of it in order
"""
