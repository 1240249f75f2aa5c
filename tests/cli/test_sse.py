"""Server-sent events: the same whatever the pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zenos.client.sse import ServerEvent, SseDecoder

LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=8)


def decoded(raw: bytes, cuts: list[int]) -> list[ServerEvent]:
    decoder, found, last = SseDecoder(), [], 0
    for cut in sorted({min(cut, len(raw)) for cut in cuts} | {len(raw)}):
        found += decoder.feed(raw[last:cut])
        last = cut
    return found


@given(st.lists(st.lists(LINE, min_size=1, max_size=3), max_size=5), st.data())
def test_any_cuts_give_the_same_events(events: list[list[str]], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = "".join(
        "".join(f"data: {line}{end}" for line in lines) + f"id: {number}{end}{end}"
        for number, lines in enumerate(events)
    )
    raw = text.encode()
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=8))
    expected = [
        ServerEvent("message", "\n".join(lines), str(number)) for number, lines in enumerate(events)
    ]
    assert decoded(raw, cuts) == expected


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_any_bytes_are_read_the_same_in_pieces(raw: bytes, cuts: list[int]) -> None:
    assert decoded(raw, cuts) == decoded(raw, [])


def test_comments_and_unknown_fields_are_no_events() -> None:
    raw = b"\xef\xbb\xbf: heartbeat\nretry: 5\nfoo\nevent: task\ndata:x\ndata\n\nevent: none\n\n"
    assert decoded(raw, []) == [ServerEvent("task", "x\n", "")]
