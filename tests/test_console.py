"""Progress as lines in a log and as a live line in a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from restmcts.console import Progress, duration, number


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(**options):
    clock, screen = Clock(), io.StringIO()
    console = Console(file=screen, width=60)
    return Progress(console=console, clock=clock, **options), clock, screen


def test_a_log_gets_a_line_every_few_seconds():
    progress, clock, screen = plain()
    with progress:
        progress.stage("round-1/search", 120)
        for done in range(1, 121):
            clock.now += 0.25
            progress.update(done, solved=done // 2, tokens=done * 1000)
    assert screen.getvalue().splitlines() == [
        "[0:00] round-1/search  begins",
        "[0:10] round-1/search  40/120  4.0/s  0:20 left  solved 20  tokens 40.0k",
        "[0:20] round-1/search  80/120  4.0/s  0:10 left  solved 40  tokens 80.0k",
        "[0:30] round-1/search  120/120  4.0/s  0:00 left  solved 60  tokens 120.0k",
        "[0:30] round-1/search  done in 0:30  solved 60  tokens 120.0k",
    ]


def test_the_rate_does_not_count_what_an_earlier_attempt_did():
    progress, clock, _ = plain()
    progress.stage("search", 100, done=50)
    clock.now += 10
    progress.update(55)
    assert progress.line() == "55/100  2.0 s each  1:30 left"


def test_an_unknown_total_shows_no_time_left():
    progress, clock, _ = plain()
    progress.stage("search")
    clock.now += 10
    progress.update(20, loss=0.12345, device=None)
    assert progress.line() == "20  2.0/s  loss 0.123"


def test_a_new_stage_ends_the_one_before_and_an_error_ends_nothing():
    progress, _, screen = plain()

    def two_stages():
        with progress:
            progress.stage("one", 1)
            progress.stage("two", 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        two_stages()
    assert [line.split("] ")[1] for line in screen.getvalue().splitlines()] == [
        "one  begins",
        "one  done in 0:00",
        "two  begins",
    ]


def test_quiet_says_nothing_and_updates_outside_a_stage_are_ignored():
    progress, _, screen = plain(mode="quiet")
    with progress:
        progress.update(3)
        progress.stage("[bold]one", 1)
        progress.update(1)
        progress.say("hello")
    assert screen.getvalue() == ""


def test_a_terminal_gets_a_live_line_and_keeps_one_line_a_stage(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    screen = io.StringIO()
    progress = Progress(console=Console(file=screen, force_terminal=True, width=120))
    assert progress.mode == "live"
    with progress:
        progress.stage("search [x]", 10)
        progress.update(5, solved=2)
        progress.say("saved [y]")
    assert "5/10" in screen.getvalue()
    assert "search [x]  done in 0:00  solved 2" in screen.getvalue()
    assert "saved [y]" in screen.getvalue()


def test_ci_is_a_log_even_with_a_terminal(monkeypatch):
    monkeypatch.setenv("CI", "true")
    assert Progress(console=Console(file=io.StringIO(), force_terminal=True)).mode == "plain"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (999, "999"),
        (9999, "9999"),
        (12_345, "12.3k"),
        (1_234_567, "1.2M"),
        (2.0, "2"),
        (0.5, "0.5"),
        (12.3456, "12.3"),
        ("cpu", "cpu"),
        (True, "True"),
        (3.5e9, "3.5G"),
    ],
)
def test_numbers_are_short(value, said):
    assert number(value) == said


def test_durations():
    assert [duration(s) for s in (0, 65, 3599.6, 7439)] == ["0:00", "1:05", "1:00:00", "2:03:59"]
