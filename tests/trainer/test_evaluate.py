"""Evaluation: the same masked places for every model, and the figure by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tokenizer import load_tokenizer
from tests.trainer.models import roberta_folder
from trainer.batches.corpus import corpus_masking, open_sequences
from trainer.batches.evaluation import cut_into_pieces, loss_of_batches, masked_batches
from trainer.batches.masking import IGNORED, MaskedSequences
from trainer.convert import convert
from trainer.engine.randomness import hash64
from trainer.evaluate import evaluate_folder, main
from trainer.model.folder import load_model


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32))
def test_pieces_keep_every_masked_place(rows: int, length: int, tokens: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    padded = -(-length // tokens) * tokens
    ids = rng.integers(0, 50, (rows, length))
    count = int(rng.integers(1, length + 1))
    places = np.sort(np.argsort(rng.random((rows, length)), axis=1)[:, :count], axis=1)
    labels = np.where(rng.random(places.shape) < 0.8, rng.integers(50, 99, places.shape), IGNORED)
    cut = cut_into_pieces(MaskedSequences(ids, places, labels), tokens, pad_id=999)
    assert np.array_equal(cut.input_ids.reshape(rows, padded)[:, :length], ids)
    assert (cut.input_ids.reshape(rows, padded)[:, length:] == 999).all()

    def scored(masked: MaskedSequences, width: int) -> set[tuple[int, int]]:
        row, column = np.nonzero(masked.labels != IGNORED)
        flat = row * width + masked.places[row, column]
        return set(zip(flat.tolist(), masked.labels[row, column].tolist(), strict=True))

    assert scored(cut, tokens) == scored(MaskedSequences(ids, places, labels), padded)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A RoBERTa of 32 positions over the corpus's vocabulary, and its Longformer of 128."""
    folder = tmp_path_factory.mktemp("models")
    size = load_tokenizer(corpus / "tokenizer.json").vocabulary_size
    roberta_folder(folder / "roberta", tokens=32, vocab_size=size)
    convert(folder / "roberta", folder / "longformer", tokens=128, window=16)
    return folder


def test_the_figure_is_the_mean_cross_entropy_in_bits(models: Path, corpus: Path) -> None:
    found = evaluate_folder(models / "longformer", corpus, limit=3)
    sequences = open_sequences(corpus, "validation")
    indices = np.arange(3)
    masked = corpus_masking(sequences.corpus).apply(
        sequences.input_ids(indices), hash64("evaluation masks", 0, indices)
    )
    model = load_model(models / "longformer").eval()
    bits, count = 0.0, 0
    for row in range(3):
        ids = torch.from_numpy(masked.input_ids[row : row + 1])
        with torch.no_grad():
            logits = model(ids, attention_mask=(ids != 1).long()).double().log_softmax(-1)[0]
        for place, label in zip(masked.places[row], masked.labels[row], strict=True):
            if label != IGNORED:
                bits -= float(logits[place, label]) / math.log(2)
                count += 1
    assert found["tokens"] == count
    assert found["sequences"] == 3
    assert found["bpc"] == pytest.approx(bits / count, rel=1e-5)


def test_shares_add_up_to_the_whole(models: Path, corpus: Path) -> None:
    """However many processes divide the sequences between them."""
    sequences, model = open_sequences(corpus, "validation"), load_model(models / "longformer").eval()
    masking, every = corpus_masking(sequences.corpus), np.arange(5)

    def sums(chosen: np.ndarray) -> np.ndarray:
        return np.array(loss_of_batches(model, masked_batches(sequences, masking, chosen, 128, seed=0)))

    assert sum(sums(every[rank::3]) for rank in range(3)) == pytest.approx(sums(every), rel=1e-6)
    assert sums(every[5:]).tolist() == [0, 0]


def test_a_shorter_model_is_scored_on_the_same_tokens(models: Path, corpus: Path) -> None:
    roberta_folder(models / "odd", tokens=37, vocab_size=load_model(models / "roberta").config.vocab_size)
    figures = [evaluate_folder(models / name, corpus) for name in ("roberta", "longformer", "odd")]
    assert len({figure["tokens"] for figure in figures}) == 1
    assert len({figure["bpc"] for figure in figures}) == 3


def test_documents_kept_apart_are_scored_at_the_same_places(models: Path, corpus: Path) -> None:
    together = evaluate_folder(models / "longformer", corpus)
    apart = evaluate_folder(models / "longformer", corpus, mask_documents=True)
    assert together["tokens"] == apart["tokens"]
    assert together["bpc"] != apart["bpc"]  # at the borders tokens see less


def test_the_command_prints_one_json_line(
    models: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(models / "roberta"), "--corpus", str(corpus), "--sequences", "2"]
    assert main(arguments) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line).keys() == {"bpc", "tokens", "sequences"}


def test_bad_input_is_one_message_and_exit_2(
    models: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = roberta_folder(tmp_path / "small", vocab_size=50)
    padded = roberta_folder(tmp_path / "padded", vocab_size=300, pad_token_id=5)
    for arguments, message in (
        (["--model", str(padded), "--corpus", str(corpus)], "found pad_token_id 5, expected "),
        (["--model", str(tmp_path / "none"), "--corpus", str(corpus)], "no such folder"),
        (["--model", str(models / "roberta"), "--corpus", str(tmp_path)], "manifest.json: missing"),
        (["--model", str(small), "--corpus", str(corpus)], "found a vocabulary of 50, expected at least 300"),
        (["--model", str(models / "roberta"), "--corpus", str(corpus), "--sequences", "0"], "--sequences"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
