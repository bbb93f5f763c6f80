"""Stop strings against an oracle that looks at the whole text after every token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from exegpt_jax.text.stops import StopStrings

TEXTS = st.lists(st.text(alphabet="ab", max_size=4), max_size=14)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=4)


def oracle(pieces: list[str], stops: list[str], include: bool, barred: int) -> tuple[str, str | None]:
    """The final text and the stop string, found the slow way."""
    text = ""
    for count, piece in enumerate(pieces, start=1):
        old, text = len(text), text + piece
        if count <= barred:
            continue
        hits = []
        for order, stop in enumerate(stops):
            starts = [i for i in range(len(text)) if text.startswith(stop, i) and i + len(stop) > old]
            hits += [(start, order, stop) for start in starts[:1]]
        if hits:
            start, _, stop = min(hits)
            return text[: start + len(stop)] if include else text[:start], stop
    return text, None


@given(pieces=TEXTS, stops=STOPS, include=st.booleans(), barred=st.integers(0, 5))
def test_agrees_with_the_oracle_and_never_takes_back(
    pieces: list[str], stops: list[str], include: bool, barred: int
) -> None:
    watcher = StopStrings(stops, include=include)
    shown, stopped = "", None
    expected, expected_stop = oracle(pieces, stops, include, barred)
    for count, piece in enumerate(pieces, start=1):
        text, stopped = watcher.push(piece, barred=count <= barred)
        shown += text
        assert expected.startswith(shown)
        if stopped is not None:
            break
    else:
        shown += watcher.flush()
    assert (shown, stopped) == (expected, expected_stop)


@given(pieces=TEXTS, stops=STOPS)
def test_at_most_the_longest_stop_but_one_is_held(pieces: list[str], stops: list[str]) -> None:
    watcher = StopStrings(stops)
    shown = given_text = ""
    for piece in pieces:
        text, stopped = watcher.push(piece)
        shown, given_text = shown + text, given_text + piece
        if stopped is not None:
            return
        assert len(given_text) - len(shown) <= max(map(len, stops), default=1) - 1
