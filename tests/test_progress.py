import io
import sys
from types import SimpleNamespace

import pytest

from infuser import progress
from infuser.progress import track


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal_and_clock(monkeypatch):
    """A terminal and a clock that the test moves; no fixture, since pytest sets stderr again before the test's body."""
    screen, now = Terminal(), [0.0]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setenv("TERM", "xterm")
    return screen, now


def test_a_line_every_half_minute_where_there_is_no_terminal(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for _ in track(range(8), "working", note=lambda done: f"{done} squared is {done**2}"):
        now[0] += 10
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["working: 4 of 8, 4 squared is 16", "working: 8 of 8, 8 squared is 64"]
    for _ in track(iter(range(2)), "short"):
        now[0] += 10
    assert capsys.readouterr().err == ""


def test_quiet_below_two_seconds(monkeypatch):
    screen, now = terminal_and_clock(monkeypatch)
    for _ in track(range(4), "working"):
        now[0] += 0.4
    assert screen.getvalue() == ""


def test_a_bar_with_rate_and_count_after_two_seconds(monkeypatch):
    screen, now = terminal_and_clock(monkeypatch)
    for _ in track(range(10), "working"):
        now[0] += 0.5
    shown = screen.getvalue()
    assert "working" in shown
    assert "10/10" in shown
    assert "2/s" in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_items_come_through_in_order_and_lazily(terminal, monkeypatch):
    if terminal:
        monkeypatch.setattr(sys, "stderr", Terminal())
    taken = []

    def source():
        for i in range(3):
            taken.append(i)
            yield i

    bar = track(source(), "working", total=3)
    assert next(bar) == 0
    assert taken == [0]
    assert list(bar) == [1, 2]


def test_the_bar_goes_away_when_the_loop_breaks_or_fails(monkeypatch):
    screen, now = terminal_and_clock(monkeypatch)
    bar = track(range(10), "working")
    for i in bar:
        now[0] += 3
        if i == 2:
            break
    bar.close()
    assert "\x1b[?25l" in screen.getvalue()  # the cursor was hidden
    assert screen.getvalue().count("\x1b[?25h") == 1  # and came back
