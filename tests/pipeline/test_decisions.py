"""Decisions by hash: what shares one, and that they are spread."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from pipeline.decisions import HASH_VALUES, decision_hash, text_hash, threshold

TEXT = st.text(max_size=60) | st.text(st.sampled_from("aA bB\t\nÄäЖж日\u00a0ß€"), max_size=60)


@given(TEXT, TEXT)
def test_texts_share_a_hash_where_case_and_white_space_alone_differ(one: str, other: str) -> None:
    def normal(text: str) -> str:
        kept = (c for c in text if not (c.isascii() and c.isspace()))
        # Case by character: of words, the case of some letters (Greek's final sigma) depends on their neighbours.
        return (
            "".join(c if c.isascii() else "\x00" for c in kept).lower()
            + "".join(c for c in text if not c.isascii()).lower()
        )

    assert (text_hash(one) == text_hash(other)) == (normal(one) == normal(other))


@given(TEXT)
def test_case_and_white_space_do_not_count(text: str) -> None:
    spaced = "\n ".join(text)
    assert text_hash(spaced) == text_hash(text)
    upper = "".join(c.upper() if len(c.upper()) == 1 and c.upper().lower() == c.lower() else c for c in text)
    if "Σ" not in upper:
        assert text_hash(upper) == text_hash(text)


def test_each_decision_has_its_own_hash() -> None:
    names = [f"source/{i}" for i in range(4000)]
    sampled = [name for name in names if decision_hash("sample", 0, name) < threshold(Fraction(1, 3))]
    assert abs(len(sampled) / len(names) - 1 / 3) < 0.03
    first_half = [name for name in sampled if decision_hash("order", 0, name) < HASH_VALUES // 2]
    assert abs(len(first_half) / len(sampled) - 1 / 2) < 0.05
