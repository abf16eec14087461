"""Where a step lies among phases, against counting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.engine.flops import causal_pairs
from trainer.engine.phases import Phase, Phases

PHASES = st.lists(
    st.builds(
        Phase,
        steps=st.integers(1, 6),
        batch_size=st.integers(1, 5),
        micro_batch_size=st.just(1),
        tokens=st.sampled_from([8, 16]),
        sequences=st.sampled_from([3, 7]),
        flops=st.integers(1, 100),
        learning_rate=st.floats(1e-5, 1),
    ),
    min_size=1,
    max_size=5,
)


@given(PHASES)
def test_it_is_what_counting_gives(listed: list[Phase]) -> None:
    phases = Phases(listed)
    step = tokens = flops = taken = 0
    epochs = 0.0
    before: Phase | None = None
    for number, phase in enumerate(listed):
        if before is None or (before.tokens, before.sequences) != (phase.tokens, phase.sequences):
            taken = 0
        for within in range(1, phase.steps + 1):
            step += 1
            place = phases.at(step)
            assert (place.number, place.phase, place.within, place.taken) == (number, phase, within, taken)
            assert place.rate == phase.learning_rate
            taken += phase.batch_size
            tokens += phase.batch_size * phase.tokens
            flops += phase.flops
            epochs += phase.batch_size / phase.sequences
            assert (phases.tokens(step), phases.flops(step)) == (tokens, flops)
            assert phases.epochs(step) == pytest.approx(epochs)
            assert phases.is_last_of_phase(step) == (within == phase.steps)
        before = phase
    assert phases.steps == step
    for beyond in (0, step + 1):
        with pytest.raises(ValueError, match="step: found"):
            phases.at(beyond)


@given(st.integers(1, 50), st.integers(0, 20), st.integers(1, 5))
def test_pairs_are_counted(characters: int, lookback: int, step: int) -> None:
    expected = sum(
        distance % step == 0 and distance <= step * lookback
        for i in range(characters)
        for distance in range(i + 1)
    )
    assert causal_pairs(characters, lookback, step) == expected
