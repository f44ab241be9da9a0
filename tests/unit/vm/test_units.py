"""Sizes, rates and times: exact, and refused where they could mean two things."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from qmp_migrate.errors import InvalidQuantity
from qmp_migrate.vm.units import (
    RATE_LIMIT,
    SIZE_LIMIT,
    TIME_LIMIT_MS,
    ByteRate,
    ByteSize,
    Milliseconds,
    format_rate,
    format_size,
    format_time_ms,
    parse_qemu_size,
    parse_rate,
    parse_size,
    parse_time_ms,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("512MiB", 512 << 20),
        ("1GiB", 1 << 30),
        ("1.5GiB", 3 << 29),
        ("4096", 4096),
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("1G", 1 << 30),
        ("10GB", 10**10),
        ("1kB", 1000),
        (" 512 MiB ", 512 << 20),
        ("1B", 1),
        ("0.001kB", 1),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1Gbit", 125_000_000),
        ("100Mbit", 12_500_000),
        ("100Mbit/s", 12_500_000),
        ("80MiB", 80 << 20),
        ("80MiB/s", 80 << 20),
        ("125MB", 125_000_000),
        ("0.1Gbit", 12_500_000),
        ("9bit", 1),
        ("8Kibit", 1024),
    ],
)
def test_rates_are_bytes_per_second(text: str, value: int) -> None:
    assert parse_rate(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("300ms", 300), ("2s", 2000), ("1.5s", 1500), ("1m", 60_000), ("1h", 3_600_000), ("0.001s", 1)]
)
def test_times_are_milliseconds(text: str, value: int) -> None:
    assert parse_time_ms(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "reason"),
    [
        (parse_size, "0", "zero"),
        (parse_size, "-1MiB", "negative"),
        (parse_size, "1Mbit", "not known"),
        (parse_size, "1mb", "did you mean 'MB'"),
        (parse_size, "1.5", "whole number of bytes"),
        (parse_size, "0.3B", "whole number of bytes"),
        (parse_size, "2000PiB", "more than 1 EiB"),
        (parse_size, "1MiB/s", "a number and a unit"),
        (parse_size, "1e3MiB", "a number and a unit"),
        (parse_size, "nan", "a number and a unit"),
        (parse_size, "inf", "a number and a unit"),
        (parse_size, "1_000", "a number and a unit"),
        (parse_size, "١MiB", "a number and a unit"),
        (parse_size, "9" * 5000, "a number and a unit"),
        (parse_size, "", "a number and a unit"),
        (parse_rate, "100", "no unit"),
        (parse_rate, "100M", "not known"),
        (parse_rate, "1gbit", "did you mean 'Gbit'"),
        (parse_rate, "0Gbit", "zero"),
        (parse_rate, "7bit", "zero"),
        (parse_rate, "-1Gbit", "negative"),
        (parse_rate, "2TiB", "more than 1 TiB"),
        (parse_time_ms, "300", "no unit"),
        (parse_time_ms, "0ms", "zero"),
        (parse_time_ms, "0.5ms", "finer"),
        (parse_time_ms, "-2s", "negative"),
        (parse_time_ms, "1000h", "30 days"),
        (parse_time_ms, "2 weeks", "not known"),
        (parse_time_ms, "2s/s", "a number and a unit"),
    ],
)
def test_what_is_refused_says_why_and_shows_an_example(parse: Callable[[str], int], text: str, reason: str) -> None:
    with pytest.raises(InvalidQuantity) as caught:
        parse(text)
    assert reason in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("write it like ")


@given(st.integers(1, SIZE_LIMIT))
def test_size_round_trip(value: int) -> None:
    assert parse_size(format_size(value)) == value


@given(st.one_of(st.integers(1, RATE_LIMIT), st.integers(1, RATE_LIMIT // 125_000).map(lambda n: n * 125_000)))
def test_rate_round_trip(value: int) -> None:
    assert parse_rate(format_rate(value)) == value


@given(st.one_of(st.integers(1, TIME_LIMIT_MS), st.integers(1, TIME_LIMIT_MS // 1000).map(lambda n: n * 1000)))
def test_time_round_trip(value: int) -> None:
    assert parse_time_ms(format_time_ms(value)) == value


@given(st.integers(1, 10**15), st.integers(0, 6))
def test_decimals_do_not_drift(number: int, places: int) -> None:
    """A float would lose the last digits of these."""
    digits = str(number).rjust(places + 1, "0")
    text = f"{digits[:-places]}.{digits[-places:]}" if places else digits
    expected, rest = divmod(number * 10**6, 10**places)
    if rest or not 0 < expected <= SIZE_LIMIT:
        with pytest.raises(InvalidQuantity):
            parse_size(f"{text}MB")
    else:
        assert parse_size(f"{text}MB") == expected


@pytest.mark.parametrize(
    ("value", "text"), [(536870912, "512MiB"), (1536 << 20, "1536MiB"), (4097, "4097B"), (0, "0B"), (1 << 50, "1PiB")]
)
def test_sizes_are_written_in_the_largest_exact_unit(value: int, text: str) -> None:
    assert format_size(value) == text


@pytest.mark.parametrize(("value", "text"), [(125_000_000, "1Gbit/s"), (80 << 20, "80MiB/s"), (3, "3B/s")])
def test_rates_are_written_in_bits_where_round(value: int, text: str) -> None:
    assert format_rate(value) == text


@pytest.mark.parametrize(
    ("text", "value"), [("512", 512 << 20), ("1.5G", 3 << 29), ("0x10", 16 << 20), ("4096k", 4 << 20), ("1t", 1 << 40)]
)
def test_qemus_own_sizes(text: str, value: int) -> None:
    assert parse_qemu_size(text, unit=1 << 20) == value


@pytest.mark.parametrize("text", ["", "512MB", "-1", "1.5.2", "G", "1 G"])
def test_qemus_own_sizes_refused(text: str) -> None:
    with pytest.raises(InvalidQuantity):
        parse_qemu_size(text)


class _Model(BaseModel):
    size: ByteSize = 1
    rate: ByteRate = 1
    time: Milliseconds = 1


def test_pydantic_fields_read_text_and_write_it_again_in_json() -> None:
    model = _Model.model_validate({"size": "1GiB", "rate": "1Gbit", "time": "2s"})
    assert (model.size, model.rate, model.time) == (1 << 30, 125_000_000, 2000)
    assert model.model_dump_json() == '{"size":"1GiB","rate":"1Gbit/s","time":"2s"}'
    assert _Model.model_validate_json(model.model_dump_json()) == model
    assert _Model.model_json_schema()["properties"]["rate"]["type"] == "string"


@pytest.mark.parametrize(
    "data", [{"rate": 100}, {"time": 300}, {"size": True}, {"size": 1.5}, {"size": "x"}, {"size": -1}, {"time": None}]
)
def test_pydantic_fields_keep_the_key_in_the_error(data: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        _Model.model_validate(data)
    assert caught.value.errors()[0]["loc"] == (next(iter(data)),)


def test_a_bare_integer_is_a_size_in_bytes() -> None:
    assert _Model.model_validate({"size": 4096}).size == 4096
