"""people-mini: a small Stable Diffusion of people, and the program that trains it."""

from pathlib import Path

# The pipeline that ships with the package (docs/people_mini.md says how it was trained), and the classifier of drawings
# that `measure` judged it with.
PIPELINE = Path(__file__).parent / "pipeline"
CLASSIFIER = Path(__file__).parent / "classifier.safetensors"
