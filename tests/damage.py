"""Hypothesis strategies for files that something has gone wrong with."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

HEADER_BYTES = 128

NOTHING = st.just(b"")

# Headers are short, and decide most.
places = st.one_of(st.integers(0, HEADER_BYTES), st.integers(0, 20_000))


@st.composite
def damaged(draw: st.DrawFn, files: Sequence[bytes]) -> bytes:
    """One of these files with up to eight other bytes, now and then some put in, or cut off."""
    data = bytearray(draw(st.sampled_from(files)))
    for place, value in draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        data[place % len(data)] = value
    place = draw(places) % len(data)
    data[place:place] = draw(st.one_of(NOTHING, NOTHING, st.binary(max_size=16)))
    length = draw(st.one_of(st.none(), st.none(), places))
    return bytes(data if length is None else data[:length])
