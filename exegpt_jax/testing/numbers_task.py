"""The embedded model's task: a number in digits, written out in English words, so that every answer can be checked.

`4217 ->` asks for `four thousand two hundred seventeen`. Answers vary in length (1 to 14 words) and end by a real
end-of-sequence token. Numbers that a hash holds out were never trained on; the demo asks for such only.
"""

from __future__ import annotations

import hashlib
import random

MAX_DIGITS = 9
ARROW = "->"

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SCALES = ("million", "thousand", "")
WORDS = (*ONES, *TENS, "hundred", "thousand", "million")


def words(number: int) -> str:
    """The number in words. Raises ValueError outside 0 .. 999,999,999."""
    if not 0 <= number < 10**MAX_DIGITS:
        raise ValueError(f"number: {number} is outside 0 .. {10**MAX_DIGITS - 1}")
    if number == 0:
        return ONES[0]
    groups = (number // 10**6, number // 1000 % 1000, number % 1000)
    said = []
    for group, scale in zip(groups, SCALES, strict=True):
        if group:
            said += [*_below_thousand(group), *([scale] if scale else [])]
    return " ".join(said)


def _below_thousand(number: int) -> list[str]:
    hundreds, rest = divmod(number, 100)
    said = [ONES[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        said.append(TENS[rest // 10 - 2])
        rest %= 10
    if rest:
        said.append(ONES[rest])
    return said


def held_out(number: int) -> bool:
    """Whether training never saw this number: a tenth of all from 100 on, chosen by hash."""
    return number >= 100 and hashlib.sha256(str(number).encode()).digest()[0] % 10 == 0


def prompt(number: int) -> str:
    return f"{number} {ARROW}"


def draw(rng: random.Random, min_digits: int, max_digits: int, *, unseen: bool) -> int:
    """A number whose count of digits is uniform; `unseen` picks from the held-out ones, else from the others."""
    while True:
        digits = rng.randint(min_digits, max_digits)
        number = rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)
        if held_out(number) == unseen:
            return number
