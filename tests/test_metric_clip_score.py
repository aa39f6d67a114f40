"""CLIPScore is the cosine of picture and prompt, by CLIP's own two halves."""

import pytest
import torch
import transformers
from seen_pictures import seen_picture
from small_transformers import save_clip

from mldm_plugin.errors import WeightsError
from mldm_plugin.evaluation.cases import Case
from mldm_plugin.hooks.metrics.clip_score import CLIPScore, clip_score
from mldm_plugin.people_mini.tokenizer import vocabulary, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("clip")
    write_tokenizer(place)
    return save_clip(place, words=len(vocabulary()[0]))


def asked(text, seed=0):
    picture = seen_picture(seed)
    picture.case = Case("0", text, 1)
    return picture


def test_it_is_the_cosine_of_clips_own_embeddings(folder):
    metric = CLIPScore(path=folder)
    picture = asked("a man")
    whole = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        text = whole.get_text_features(**tokenizer("a man", return_tensors="pt", max_length=8, truncation=True))
    text = getattr(text, "pooler_output", text)[0]
    wanted = clip_score(metric.clip(picture)[0], text)
    assert metric(picture) == pytest.approx(wanted, abs=1e-6)
    assert metric(asked("a man")) != metric(asked("a woman"))
    assert metric(asked("")) is None


def test_a_long_prompt_is_cut_as_clip_cuts_it(folder):
    metric = CLIPScore(path=folder)
    assert metric(asked("a man " * 40)) == pytest.approx(metric(asked("a man " * 80)))


def test_values_by_hand():
    assert clip_score(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])) == pytest.approx(1.5)
    assert clip_score(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0])) == 0


def test_where_it_is_not_here_it_says_what_to_fetch(tmp_path):
    with pytest.raises(WeightsError, match="holds no config.json"):
        CLIPScore(path=str(tmp_path))
