"""Where each loss still tells a photograph from another one, before anything is trained.

measure.py   every loss on clean estimates of photographs at fixed noise, against their own photograph and another
placing.py   another photograph, moved so that its face lies where the first one's does
propose.py   T and λ that follow
report.py    the table, the figure and the file
"""
