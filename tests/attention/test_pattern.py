"""The rule itself on small cases written out by hand, and the interval view against the predicate."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from attention.pattern import Pattern
from tests.attention.cases import Case, cases


def pattern(
    length: int, window: int, dilation: tuple[int, ...] = (1,), causal: bool = False, **masks: str
) -> Pattern:
    """Masks as strings: one character a token."""

    def read(name: str) -> torch.Tensor | None:
        return torch.tensor([[int(c) for c in masks[name]]]) if name in masks else None

    real, is_global = read("real"), read("is_global")
    query = torch.empty(1, len(dilation), length, 1)
    bools = [None if mask is None else mask.bool() for mask in (real, is_global)]
    return Pattern.of(query, window, dilation, causal, *bools, read("document"))


def picture(of: Pattern, head: int = 0) -> str:
    return "/".join("".join("x" if seen else "." for seen in row) for row in of.dense()[0, head].tolist())


def test_the_window_is_the_total_width() -> None:
    assert picture(pattern(5, 2)) == "xx.../xxx../.xxx./..xxx/...xx"


def test_dilation_is_the_step_and_one_a_head() -> None:
    assert picture(pattern(5, 2, (1, 2)), 1) == "x.x../.x.x./x.x.x/.x.x./..x.x"


def test_causal_looks_back_half_the_window() -> None:
    assert picture(pattern(5, 4, causal=True)) == "x..../xx.../xxx../.xxx./..xxx"


def test_a_global_token_sees_all_and_is_seen_by_all() -> None:
    assert picture(pattern(5, 0, is_global="01000")) == "xx.../xxxxx/.xx../.x.x./.x..x"


def test_causality_holds_for_global_tokens() -> None:
    assert picture(pattern(4, 0, causal=True, is_global="0100")) == "x.../xx../.xx./.x.x"


def test_padding_sees_nothing_and_is_never_global() -> None:
    assert picture(pattern(4, 2, real="1101", is_global="0010")) == "xx../xx../..../...x"


def test_documents_keep_to_themselves() -> None:
    assert picture(pattern(5, 4, document="77722", is_global="10000")) == "xxx../xxx../xxx../...xx/...xx"


def test_a_document_returning_is_an_error_and_padding_inside_one_is_not() -> None:
    with pytest.raises(ValueError, match="example 0"):
        pattern(4, 2, document="1121").check_documents()
    pattern(4, 2, document="1121", real="1101").check_documents()
    pattern(4, 2, document="2112", real="0111").check_documents()
    assert picture(pattern(4, 6, document="2112", real="0111")) == "..../.xx./.xx./...x"


@settings(max_examples=200, deadline=None)
@given(case=cases((1, 7, 20, 63)))
def test_intervals_are_the_predicate(case: Case) -> None:
    """Band, columns and rows, put together again, are the dense mask: nothing twice, nothing missing."""
    query, options = case.projections[0], case.options
    batch, heads, length, _ = query.shape
    dilation = options["dilation"]
    per_head = (dilation,) * heads if isinstance(dilation, int) else tuple(dilation)
    masks = [options.get(name) for name in ("attention_mask", "global_attention_mask")]
    bools = [None if mask is None else mask.bool() for mask in masks]
    of = Pattern.of(query, case.window, per_head, options["causal"], *bools, options.get("document_ids"))

    count = torch.zeros(batch, heads, length, length, dtype=torch.int64)
    for head, step in enumerate(per_head):
        for residue in range(min(step, length)):
            strip = count[:, head, residue::step, residue::step]
            strip += of.band(residue, step).seen(slice(None), slice(0, strip.shape[-1]))
    if of.is_global is not None:
        count *= ~of.is_global[:, None, None, :]
        index, used = of.global_index
        columns = of.global_columns().seen(slice(None), slice(0, index.shape[1]))  # (B, N, G)
        rows = of.global_rows().seen(slice(None), slice(0, length))  # (B, G, N)
        for example, slot in used.nonzero().tolist():
            place = index[example, slot]
            count[example, :, :, place] += columns[example, :, slot]
            count[example, :, place] += rows[example, slot]
    if of.holes is not None:
        count *= ~of.holes[:, None, None, :]
    assert torch.equal(count, of.dense().long().expand_as(count))
