"""Shares of a whole, exactly: what a configuration gives as 0.25 or "1/3" is compared as that fraction, never as
the float beside it, so that a document at the limit meets the same fate on every machine."""

from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator, Field


def _fraction(value: object) -> object:
    """A share as the YAML spells it: 0.25, or "1/3", which no decimal number is."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            return Fraction(str(value))
        except (ValueError, ZeroDivisionError):
            pass
    if isinstance(value, Fraction):
        return value
    raise ValueError('expected a number or a fraction such as "1/3"')


Exact = Annotated[Fraction, BeforeValidator(_fraction)]
Share = Annotated[Exact, Field(ge=0, le=1)]


def exceeds(part: int, share: Fraction, whole: int) -> bool:
    """Whether part > share · whole, exactly; quicker than in fractions, which find common divisors."""
    return part * share.denominator > share.numerator * whole
