"""The comparison of people in generated pictures.

cases.py       what every model is asked to draw, and the photographs that belong to it
models.py      what --model says, and how it is loaded
sampling.py    each model draws each case from the same noise
picture.py     a picture as metrics see it
measuring.py   what each metric says of each picture
one_step.py    the clean estimate of held-out photographs at fixed noise
statistics.py  means, differences, intervals
results.py     all that the report shows
evaluate.py    the whole, in its order
"""
