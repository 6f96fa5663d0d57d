"""What the scripted chain does with texts and cancellations, without a server."""

import threading

import pytest

from inflight.serve.bls_text import AnswerText, SequenceText
from inflight.serve.bls_watch import CancellationWatch


def said(pieces, words, **options):
    """What is said of a streamed answer, and whether a word ended it."""
    text = SequenceText(words, **options)
    out = []
    for piece in pieces:
        out += text.push([piece])
        if text.stopped:
            break
    return out, text.stopped


STREAMS = {
    "no word": (["abc", "def"], [], ["abc", "def"], False),
    "no match": (["abc", "def"], ["x"], ["abc", "def"], False),
    "within a piece": (["abc", "d. e", "f"], ["."], ["abc", "d."], True),
    "the whole piece": (["abc", "STOP", "f"], ["STOP"], ["abc", "STOP"], True),
    "over two pieces": (["aST", "OPb", "c"], ["STOP"], ["aST", "OP"], True),
    "over many pieces": (["aS", "T", "", "O", "Pb"], ["STOP"], ["aS", "T", "", "O", "P"], True),
    "almost": (["ST", "O", "x", "STOP"], ["STOP"], ["ST", "O", "x", "STOP"], True),
    "beginning anew": (["S", "STO", "P!"], ["STOP"], ["S", "STO", "P"], True),
    "the first of several to end": (["one two three"], ["three", "two"], ["one two"], True),
    "the shorter of two": (["a b"], ["a b", "a"], ["a"], True),
    "a word within another": (["xab", "cy"], ["abc", "b"], ["xab"], True),
    "not ascii": (["é", "ü世", "界x"], ["世界"], ["é", "ü世", "界"], True),
    "an empty word is none": (["abc"], [""], ["abc"], False),
}


@pytest.mark.parametrize("case", STREAMS)
def test_stop_words(case):
    pieces, words, expected, stopped = STREAMS[case]
    assert said(pieces, words) == (expected, stopped)


@pytest.mark.parametrize("case", STREAMS)
def test_stop_words_do_not_depend_on_the_pieces(case):
    pieces, words, expected, stopped = STREAMS[case]
    for again in (list("".join(pieces)), ["".join(pieces)]):
        found, found_stopped = said(again, words)
        assert ("".join(found), found_stopped) == ("".join(expected), stopped)


def test_accumulated_text():
    assert said(["aS", "TO", "Pb"], ["STOP"], accumulate=True) == (["aS", "aSTO", "aSTOP"], True)


def test_beams_come_whole():
    text = SequenceText(["."])
    assert text.push(["ab", "a."]) == ["ab", "a."] and not text.stopped
    assert text.push(["abc", "a.b"]) == ["abc", "a."] and not text.stopped
    assert text.push(["ab.d", "a.b"]) == ["ab.", "a."] and text.stopped


def test_a_prompt_is_not_searched():
    text = SequenceText(["."])
    assert text.push(["Hi. So it is. Yes"], unsearched=3) == ["Hi. So it is."]


def test_sequences_end_one_by_one():
    answer = AnswerText([["."], []], sequences=3)
    assert answer.push(0, 0, ["a."], final=False) == (["a."], True)
    assert answer.push(0, 0, ["b"], final=False) is None
    assert answer.push(1, 0, ["a."], final=False) == (["a."], False)
    assert answer.push(0, 1, ["c"], final=True) == (["c"], False)
    assert not answer.done
    assert answer.push(1, 0, ["b"], final=True) == (["b"], False)
    assert answer.done
    assert answer.cut_short


def test_nothing_is_cut_short_by_a_word_in_the_last_piece():
    answer = AnswerText([["."]], sequences=1)
    assert answer.push(0, 0, ["a.b"], final=True) == (["a."], True)
    assert answer.done
    assert not answer.cut_short


@pytest.fixture
def watch():
    watch = CancellationWatch(period_s=0.001)
    yield watch
    watch.close()


def test_cancelled_while_waiting(watch):
    cancelled, told = threading.Event(), threading.Event()
    with watch.watching(cancelled.is_set, told.set), watch.watching(lambda: False, lambda: pytest.fail("not this one")):
        assert not told.wait(0.01)
        cancelled.set()
        assert told.wait(10)


def test_told_once_and_never_afterwards(watch):
    calls = []
    with watch.watching(lambda: True, lambda: calls.append(1)):
        while not calls:
            pass
    seen = len(calls)
    with watch.watching(lambda: False, lambda: None):
        threading.Event().wait(0.02)
    assert seen == len(calls) == 1
