"""Coreference: the scorer against plain loops, input and decoding in words, and real documents learnt by heart."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.overfit import figures, overfit, real_wordpieces, small_model
from trainer.batches.examples import as_batch
from trainer.engine.config import InputError
from trainer.model import coreference as model
from trainer.model.coreference import CoreferenceScorer, ScorerSizes, Words
from trainer.tasks.conll2012 import Document, read_conll
from trainer.tasks.coreference import Coreference, CoreferenceSettings, linked, row_borders
from trainer.tasks.coreference_metrics import score
from trainer.tasks.example import Example, Skipped
from trainer.tasks.task import Lengths
from trainer.tasks.wordpieces import Wordpieces

SMALL = {"feed_forward_size": 64, "feature_size": 8, "dropout": 0.0}


def a_task(train: Path = Path("none"), **more: object) -> Coreference:
    task = CoreferenceSettings.model_validate({"train": train, **SMALL, **more}).task()
    assert isinstance(task, Coreference)
    return task


@pytest.fixture(scope="module")
def wordpieces(shared_data: Path) -> Wordpieces:
    return real_wordpieces(shared_data, a_task())


def a_document(sentences: list[list[str]], clusters: list[list[tuple[int, int]]] | None = None) -> Document:
    borders = np.cumsum([0, *map(len, sentences)]).tolist()
    words = tuple(word for sentence in sentences for word in sentence)
    return Document(
        "bc/made/00",
        "000",
        words,
        ("-",) * len(words),
        tuple(pairwise(borders)),
        tuple(map(tuple, clusters or [])),
    )


# Pruning and scoring, against plain loops.


def crosses(one: tuple[int, int], other: tuple[int, int]) -> bool:
    a, b = (set(range(start, end + 1)) for start, end in (one, other))
    return bool(a & b) and bool(a - b) and bool(b - a)


def kept_by_looking_at_all(scores: list[float], spans: list[tuple[int, int]], keep: int) -> list[int]:
    kept: list[int] = []
    for number in sorted(range(len(spans)), key=lambda number: (-scores[number], number)):
        if len(kept) < keep and not any(crosses(spans[number], spans[other]) for other in kept):
            kept.append(number)
    return sorted(kept)


@given(st.lists(st.integers(1, 6), max_size=4), st.integers(1, 5), st.integers(0, 12), st.data())
def test_candidates_and_those_kept(lengths: list[int], width: int, keep: int, data: st.DataObject) -> None:
    borders = np.cumsum([0, *lengths]).tolist()
    ends = np.repeat(borders[1:], lengths).astype(np.int64)
    starts, lasts = model.candidates(ends, width)
    spans = [
        (start, end - 1)
        for first, behind in pairwise(borders)
        for start in range(first, behind)
        for end in range(start + 1, min(behind, start + width) + 1)
    ]
    assert list(zip(starts.tolist(), lasts.tolist(), strict=True)) == spans
    few = st.sampled_from([-1.0, 0.0, 0.5, 2.0])  # so that many are equal
    scores = data.draw(st.lists(few, min_size=len(spans), max_size=len(spans)))
    kept = model.best_without_crossing(np.array(scores), starts, lasts, keep, sum(lengths))
    assert kept.tolist() == kept_by_looking_at_all(scores, spans, keep)


def test_spans_that_only_touch_in_a_word_cross() -> None:
    starts, ends = np.array([0, 2, 2]), np.array([2, 2, 4])
    kept = model.best_without_crossing(np.array([1.0, 0.0, 2.0]), starts, ends, 3, 5)
    assert kept.tolist() == [1, 2]


def test_equal_antecedents_are_the_earlier_ones() -> None:
    scores = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [2, 2, 2, 2]])
    assert model.best_antecedents(scores, 2).tolist() == [[0, 1], [0, 1], [1, 2], [0, 1]]
    assert model.best_antecedents(scores, 50).shape == (4, 3)


def test_distances_in_buckets() -> None:
    found = model.distance_bucket(torch.arange(200)).tolist()
    assert found[:5] == [0, 1, 2, 3, 4]
    assert found[5:] == [min(9, math.floor(math.log2(away)) + 3) for away in range(5, 200)]


def one_score(network: model.SplitFeedForward, inputs: torch.Tensor) -> float:
    return float(network.score(torch.relu(network.dense(inputs))))


Spans = list[tuple[int, int]]


def antecedents_in_loops(
    scorer: CoreferenceScorer, states: torch.Tensor, words: Words
) -> tuple[Spans, list[float], dict[tuple[int, int], float]]:
    """(spans, their scores, {(span, antecedent): score}) in plain loops over the whole inputs of the networks."""
    sizes = scorer.sizes
    borders = words.sentence_end.tolist()
    spans = [
        (start, end)
        for start in range(len(words))
        for end in range(start, min(borders[start], start + sizes.max_span_width))
    ]

    def vector(start: int, end: int) -> torch.Tensor:
        own = states[int(words.first[start]) : int(words.last[end]) + 1]
        head = (torch.softmax(scorer.head_attention(own), 0) * own).sum(0)
        return torch.cat([own[0], own[-1], head, scorer.width.weight[end - start]])

    def mention(start: int, end: int) -> float:
        prior = one_score(scorer.width_prior, scorer.prior_width.weight[end - start])
        return one_score(scorer.mention, vector(start, end)) + prior

    keep = max(2, int(sizes.spans_per_word * len(words)))
    spans = [spans[n] for n in kept_by_looking_at_all([mention(*span) for span in spans], spans, keep)]
    vectors = [vector(*span) for span in spans]
    own = [mention(*span) for span in spans]

    def coarse(i: int, j: int) -> float:
        bucket = int(model.distance_bucket(torch.tensor(i - j)))
        prior = float(scorer.distance_prior(scorer.prior_distance.weight[bucket]))
        return own[i] + own[j] + float(scorer.coarse(vectors[i]) @ vectors[j]) + prior

    chosen = {
        i: sorted(range(i), key=lambda j: (-coarse(i, j), j))[: sizes.antecedents] for i in range(len(spans))
    }
    cheap = {(i, j): coarse(i, j) for i in chosen for j in chosen[i]}

    def fine(i: int, j: int) -> float:
        a, b = spans[i][0], spans[j][0]
        features = [
            scorer.same_speaker.weight[int(words.speaker[a] == words.speaker[b])],
            scorer.genre.weight[words.genre],
            scorer.segment.weight[min(model.SEGMENTS - 1, int(words.segment[a] - words.segment[b]))],
            scorer.distance.weight[int(model.distance_bucket(torch.tensor(i - j)))],
        ]
        return one_score(scorer.pair, torch.cat([vectors[i], vectors[j], vectors[i] * vectors[j], *features]))

    for turn in range(sizes.depth):
        scores = {pair: cheap[pair] + fine(*pair) for pair in cheap}
        if turn < sizes.depth - 1:
            refined = []
            for i, vector_i in enumerate(vectors):
                weights = torch.softmax(torch.tensor([0.0, *(scores[i, j] for j in chosen[i])]), 0)
                mean = weights[0] * vector_i
                for weight, j in zip(weights[1:], chosen[i], strict=True):
                    mean = mean + weight * vectors[j]
                assert scorer.gate is not None
                gate = torch.sigmoid(scorer.gate(torch.cat([vector_i, mean])))
                refined.append(gate * mean + (1 - gate) * vector_i)
            vectors = refined
    return spans, own, scores


def random_words(lengths: list[int], generator: np.random.Generator) -> tuple[Words, int]:
    W = sum(lengths)
    counts = generator.integers(1, 4, W)
    last = torch.from_numpy(counts.cumsum() - 1)
    ends = torch.from_numpy(np.repeat(np.cumsum(lengths), lengths))
    speaker = torch.from_numpy(generator.integers(0, 2, W))
    segment = torch.from_numpy(np.sort(generator.integers(0, 15, W)))
    words = Words(last - torch.from_numpy(counts) + 1, last, ends, speaker, segment, int(W % 8))
    return words, int(counts.sum())


@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    depth=st.integers(1, 3),
    antecedents=st.integers(1, 6),
    block=st.integers(1, 40),
    seed=st.integers(0, 1 << 20),
)
def test_the_scorer_against_loops(
    lengths: list[int], depth: int, antecedents: int, block: int, seed: int
) -> None:
    torch.manual_seed(seed)
    words, pieces = random_words(lengths, np.random.default_rng(seed))
    sizes = ScorerSizes(4, 0.7, antecedents, 9, 3, depth, dropout=0.3)
    scorer = CoreferenceScorer(5, sizes, 0.4).eval()
    states = torch.randn(pieces, 5)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(model, "CANDIDATES", block)
        patch.setattr(model, "PAIRS", block)
        found = scorer(states, words)
        spans, mention, scores = antecedents_in_loops(scorer, states, words)
    assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == spans
    finite = found.scores.isfinite()
    if not finite.numel():
        assert len(spans) < 2
        return
    assert found.mention.tolist() == pytest.approx(mention, abs=1e-4)
    got = {(i, int(found.index[i, a])): float(found.scores[i, a]) for i, a in finite.nonzero().tolist()}
    assert got.keys() == scores.keys()
    assert [got[pair] for pair in scores] == pytest.approx(list(scores.values()), abs=1e-4)


def test_blocks_that_are_computed_again_have_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    words, pieces = random_words([6, 5, 7, 6], np.random.default_rng(0))
    states = torch.randn(pieces, 5, generator=torch.Generator().manual_seed(0))
    gradients = []
    for pairs in (1 << 20, 7):
        monkeypatch.setattr(model, "PAIRS", pairs)
        torch.manual_seed(0)
        scorer = CoreferenceScorer(5, ScorerSizes(4, 0.7, 6, 9, 3, 2, dropout=0.0), 0.4)
        found = scorer(states, words)
        loss = model.marginal_loss(found.scores, found.index % 2 == 0)
        gradients.append(torch.autograd.grad(loss, list(scorer.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_loss_is_of_all_true_antecedents_together() -> None:
    """Worked by hand: of e^0 for none and the scores' exponentials."""
    none = -math.inf
    scores = torch.log(torch.tensor([[0.0, 0.0], [3.0, 0.0], [2.0, 5.0], [1.0, 1.0]]))
    assert scores[0, 0] == none
    gold = torch.tensor([[False, False], [True, False], [True, True], [False, False]])
    # Nothing to choose; 3 of 4; 2 + 5 of 8; none: 1 of 3.
    expected = -(math.log(3 / 4) + math.log(7 / 8) + math.log(1 / 3))
    assert float(model.marginal_loss(scores, gold)) == pytest.approx(expected)


def test_links_become_clusters() -> None:
    found = model.Antecedents(
        np.array([0, 2, 4, 6, 8]),
        np.array([0, 3, 4, 6, 9]),
        torch.tensor([[0, 1], [0, 1], [0, 1], [2, 1], [3, 2]]),
        torch.zeros(5),
        torch.tensor([[-math.inf] * 2, [1.0, -math.inf], [-1.0, 0.0], [2.0, 2.0], [0.5, 0.6]]),
    )
    # 1 to 0; 2 to none, since 0 is not above 0; 3 to 2, the earlier column; 4 to 2.
    assert linked(found) == [[[0, 1], [2, 4]], [[4, 5], [6, 7], [8, 10]]]


# Input.


@settings(deadline=None, max_examples=30)
@given(
    sentences=st.lists(st.lists(st.text(max_size=6), min_size=1, max_size=8), min_size=1, max_size=4),
    tokens=st.integers(3, 30),
)
def test_words_and_wordpieces_map_to_each_other(
    wordpieces: Wordpieces, sentences: list[list[str]], tokens: int
) -> None:
    document = a_document(sentences)
    lengths = Lengths(tokens, "chunk")
    example = a_task().encode(document, wordpieces, lengths, training=False)
    assert example.read is not None
    joined = np.concatenate(example.rows)[example.read]
    assert not np.isin(joined, [wordpieces.bos, wordpieces.eos]).any()
    ends = example.features["word_ends"]
    starts = np.concatenate([[0], ends[:-1]])
    cut = 0
    for word, start, end in zip(document.words, starts, ends, strict=True):
        whole = wordpieces.encode(f" {word}").ids
        assert joined[start:end].tolist() == whole[: tokens - 2].tolist()
        cut += max(0, len(whole) - (tokens - 2))
    assert example.tokens_cut == cut
    assert example.context_tokens - cut == len(joined) == example.tokens - 2 * len(example.rows)
    assert max(map(len, example.rows)) <= tokens
    assert len(set(example.features["segment"].tolist())) == len(example.rows)


def test_long_documents_are_read_in_rows_or_cut_at_a_sentence(wordpieces: Wordpieces) -> None:
    sentences = [["the", "cat", "sat"], ["it", "sat"], ["a", "dog", "saw", "it"], ["so"]]
    document = a_document(sentences, [[(0, 2), (3, 4), (8, 9)], [(5, 7), (0, 1)]])
    chunked = a_task().encode(document, wordpieces, Lengths(7, "chunk"), training=True)
    assert [len(row) for row in chunked.rows] == [7, 7]
    assert chunked.tokens_cut == 0
    assert chunked.features["segment"].tolist() == [0] * 5 + [1] * 5
    assert chunked.features["sentence_end"].tolist() == [3] * 3 + [5] * 2 + [9] * 4 + [10]
    cut = a_task().encode(document, wordpieces, Lengths(8, "truncate"), training=True)
    assert [len(row) for row in cut.rows] == [7]
    assert (cut.context_tokens, cut.tokens_cut) == (10, 5)
    assert cut.features["gold_start"].tolist() == [0, 3]
    # The key stays whole: what is not read is not found.
    assert a_task().figures(a_task().sums([cut], [[[[0, 2], [3, 4]]]]))["mentions_recall"] == 40
    with pytest.raises(Skipped):
        a_task().encode(document, wordpieces, Lengths(5, "truncate"), training=True)


def test_rows_of_sentences_that_do_not_fit() -> None:
    assert row_borders([1] * 9, [(0, 2), (2, 7), (7, 9)], 3) == [(0, 2), (2, 5), (5, 7), (7, 9)]
    assert row_borders([3, 1, 1], [(0, 3)], 3) == [(0, 1), (1, 3)]
    assert row_borders([], [], 3) == [(0, 0)]


def test_documents_with_nothing_to_find(wordpieces: Wordpieces) -> None:
    task = a_task()
    examples = [
        task.encode(a_document(sentences), wordpieces, Lengths(16), training=False)
        for sentences in ([], [["One"]])
    ]
    network = small_model(task, wordpieces.size, 16, hidden_size=16)
    assert figures(network, task, examples)["conll_f1"] == 0
    loss = task.loss(network, network.states(as_batch(examples, 1, False)), examples)
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None for parameter in network.parameters())


# Files.

CONLL = """#begin document (bc/made/00/a); part 000
bc/made/00/a 0 0 Ann NNP * - - - Ann * (0|(1)
bc/made/00/a 0 1 's POS * - - - Ann * -
bc/made/00/a 0 2 old JJ * - - - Ann * (3
bc/made/00/a 0 3 dog NN * - - - Ann * 0)
bc/made/00/a 0 4 Rex NNP * - - - Ann * 3)
bc/made/00/a 0 5 likes VBZ * - - - Ann * -
bc/made/00/a 0 6 me PRP * - - - Ann * (1)

bc/made/00/a 0 0 I PRP * - - - Bob * (2)
bc/made/00/a 0 1 know VBP * - - - Bob * -
bc/made/00/a 0 2 you PRP * - - - Bob * (1)
bc/made/00/a 0 3 and CC * - - - Bob * -
bc/made/00/a 0 4 it PRP * - - - Bob * (0)
bc/made/00/a 0 5 loves VBZ * - - - Bob * -
bc/made/00/a 0 6 me PRP * - - - Bob * (2)

#end document
"""


def test_a_conll_file_learnt_by_heart_and_written(tmp_path: Path, wordpieces: Wordpieces) -> None:
    """Nested mentions, speakers, and one mention that crosses another but is alone in its cluster."""
    path = tmp_path / "folder/a.gold_conll"
    path.parent.mkdir()
    path.write_text(CONLL)
    task = a_task(path.parent, validation=path, spans_per_word=1, max_span_width=5, mention_loss=1)
    assert task.splits() == ("train", "validation")
    assert task.files("train") == [path]
    [document] = task.read("train")
    assert len(document.clusters) == 3
    example = task.encode(document, wordpieces, Lengths(16, "chunk"), training=True)
    assert len(example.rows) == 2
    assert example.features["speaker"].tolist() == [0] * 7 + [1] * 7
    assert example.features["genre"].tolist() == [1]
    network = small_model(task, wordpieces.size, 16, hidden_size=32)
    overfit(network, task, [example], 50, 3e-3)
    network.eval()
    with torch.no_grad():
        predictions = task.predict(network, network.states(as_batch([example], 1, False)), [example])
    figures_found = task.figures(task.sums([example], predictions))
    assert next(iter(figures_found.items())) == ("conll_f1", pytest.approx(100))
    task.write(tmp_path / "response", zip([example], json.loads(json.dumps(predictions)), strict=True))
    [response] = read_conll(tmp_path / "response")
    assert response.words == document.words
    assert response.columns == document.columns
    assert 100 * score([(document.clusters, response.clusters)]).mean_f1 == pytest.approx(100)


def test_real_documents_learnt_by_heart(shared_data: Path, wordpieces: Wordpieces) -> None:
    path = shared_data / "downstream/preco.jsonl"
    task = a_task(path, mention_loss=1, max_span_width=17)
    documents = sorted(task.read("train"), key=lambda document: len(document.words))[:2]
    assert all(len(cluster) > 1 for document in documents for cluster in document.clusters)
    examples = [task.encode(document, wordpieces, Lengths(512), training=True) for document in documents]
    network = small_model(task, wordpieces.size, 512, hidden_size=32)
    for _ in range(12):
        overfit(network, task, examples, 10, 3e-3)
        found = figures(network, task, examples)
        if found["conll_f1"] == pytest.approx(100):
            break
    assert all(figure == pytest.approx(100) for figure in found.values()), found


def test_the_papers_own_loss_is_learnt(shared_data: Path, wordpieces: Wordpieces) -> None:
    """It says nothing of mentions that pruning drops: what falls is the loss, of the spans that are kept."""
    task = a_task(shared_data / "downstream/preco.jsonl")
    document = min(task.read("train"), key=lambda document: len(document.words))
    example = task.encode(document, wordpieces, Lengths(96, "chunk"), training=True)
    assert len(example.rows) > 2
    network = small_model(task, wordpieces.size, 96, hidden_size=32)
    losses = overfit(network, task, [example], 15)
    assert min(losses[-5:]) < 0.2 * losses[0]


def test_figures_of_parts_are_those_of_the_whole(wordpieces: Wordpieces) -> None:
    task = a_task()
    documents = [
        a_document([["a", "b", "c", "d"]], [[(0, 1), (1, 2), (2, 3)]]),
        a_document([["a", "b"]], [[(0, 1), (1, 2)]]),
    ]
    examples: list[Example] = [
        task.encode(document, wordpieces, Lengths(16), training=True) for document in documents
    ]
    predictions = [[[[0, 1], [2, 3]]], [[[0, 1], [1, 2]]]]
    parts = [task.sums([one], [found]) for one, found in zip(examples, predictions, strict=True)]
    whole = task.sums(examples, predictions)
    assert [sum(pair) for pair in zip(*parts, strict=True)] == whole
    found = task.figures(whole)
    # Links: 1 + 1 of 2 + 1 of the key. B³: (2/3 + 2/3 + 1 + 1) of 5 mentions. CEAF: 4/5 + 1 of 2 clusters.
    assert found["muc_recall"] == pytest.approx(100 * 2 / 3)
    assert found["b_cubed_recall"] == pytest.approx(100 * (10 / 3) / 5)
    assert found["ceaf_e_f1"] == pytest.approx(100 * 1.8 / 2)
    b_cubed = 2 * (2 / 3) / (1 + 2 / 3)
    assert found["conll_f1"] == pytest.approx(100 * (0.8 + b_cubed + 0.9) / 3)


def test_own_documents(tmp_path: Path) -> None:
    rows = [
        {"id": "words", "sentences": [["I", "see"], [], ["You", "do"]], "speakers": ["Ann", None, "Bob"]},
        {"id": "text", "text": "Dr. Who's well-known: 1.5 „naïve“ fans!\nThey (all) saw it. He too"},
    ]
    path = tmp_path / "own.txt"
    path.write_text("\n".join(map(json.dumps, rows)))
    words, text = a_task().read_own(path)
    assert words.speakers == ("Ann", "Ann", "Bob", "Bob")
    assert words.sentences == ((0, 2), (2, 4))
    sentences = [" ".join(text.words[start:end]) for start, end in text.sentences]
    assert sentences == [
        "Dr .",
        "Who's well-known : 1.5 „ naïve “ fans !",
        "They ( all ) saw it .",
        "He too",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "text": "x", "sentences": []}, "line 1: found both text and sentences"),
        ({"id": "a", "text": 3}, "line 1: text: found '3', expected text"),
        (
            {"id": "a", "sentences": [["x"]], "speakers": []},
            "line 1: speakers: found 0, expected one for each of 1",
        ),
        (
            {"id": "a", "sentences": [["x"]], "speakers": [2]},
            r"line 1: speakers\[0\]: found '2', expected text",
        ),
    ],
)
def test_bad_rows(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(InputError, match=message):
        list(a_task().read_own(path))


def test_a_document_in_two_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": "one", "text": "x"}))
    with pytest.raises(InputError, match=r"b\.jsonl: found a second one_000"):
        list(a_task().read_own(tmp_path))
    with pytest.raises(InputError, match="none there"):
        list(a_task().read_own(tmp_path / "none there"))


def test_a_genre_that_is_not_known_adds_nothing() -> None:
    """And learns nothing: OntoNotes' documents all have one."""
    genre = CoreferenceScorer(8, ScorerSizes(feed_forward_size=4)).genre
    assert not genre.weight[0].any()
    genre(torch.tensor([0, 1])).sum().backward()
    assert genre.weight.grad is not None
    assert not genre.weight.grad[0].any()
    assert genre.weight.grad[1].any()
