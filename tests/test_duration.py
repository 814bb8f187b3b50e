"""Durations become steps in one place."""

from __future__ import annotations

import pytest

from vlp.duration import Clock, Span, parse


@pytest.mark.parametrize(
    ("text", "span"),
    [(300, Span(300, "steps")), ("300", Span(300, "steps")), ("2epochs", Span(2, "epochs")),
     ("1 epoch", Span(1, "epochs")), ("10Msamples", Span(1e7, "samples")),
     ("5%", Span(5, "percent")), (".5epochs", Span(0.5, "epochs")), ("16.4Msamples", Span(16_400_000, "samples")),
     ("12.3456789Msamples", Span(12_345_678.9, "samples")), ("0.123456789epochs", Span(0.123456789, "epochs"))],
)  # fmt: skip
def test_parse_and_back(text: object, span: Span) -> None:
    assert parse(text) == span
    assert parse(str(span)) == span


@pytest.mark.parametrize("text", ["", "two epochs", "5 minutes", "-3", -3, "1e3", True])
def test_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse(text)


def test_steps() -> None:
    clock = Clock(batch_size=100, epoch_samples=1050, total=200)
    assert clock.steps(parse("2epochs")) == 21
    assert clock.steps(parse("1epochs")) == 11
    assert clock.steps(parse("250samples")) == 3
    assert clock.steps(parse("5%")) == 10
    assert clock.epoch(21) == 2.0
    with pytest.raises(ValueError, match="share of the run"):
        clock._replace(total=0).steps(parse("5%"))
