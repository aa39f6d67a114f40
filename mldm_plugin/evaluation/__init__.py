"""The comparison of people in generated pictures.

evaluate.py    the whole, in its order
cases.py       what every model is asked to draw, and the photographs that belong to it
models.py      what --model says, and how it is loaded
processes.py   one, or those of `accelerate launch`, or of spreading.py, which starts several
claims.py      folders that hold what was made in one way only
sampling.py    each model draws each case from the same noise
picture.py     a picture as metrics see it
measuring.py   what each metric says of each picture
notes.py       what was measured, picture by picture
one_step.py    the clean estimate of held-out photographs at fixed noise
conditional.py how pipelines that draw from conditions are asked, and what they were given is shown
predicting.py  one prediction of a pipeline's network
judges.py      networks that no loss of the compared runs used
statistics.py  means, differences, intervals
cautions.py    what must be known before a report is believed
by_part.py     metrics of sets, part by part, beside the photographs
results.py     all that the report shows
report.py      the page, from page/; figures.py, latex.py, thumbnails.py and showing.py are what it shows
"""
