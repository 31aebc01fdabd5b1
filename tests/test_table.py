"""Tables on disk: cut at any byte and continued they are the same file; made for something else they are begun anew."""

import json

import numpy as np
import pytest

from score_jax.table import Table, append, begin, read

N = 5
VALUES = {
    "index": np.arange(N) * 3,
    "bpd": np.array([1 / 3, np.nan, -2e-9, 3.0, 1e30], np.float32),
    "failed": np.array([0, 1, 0, 0, 0]),
}
MADE_FOR = {"step": 6, "eval": {"rtol": 1e-4, "solver": "tsit5"}, "shape": (8, 8)}


def rows(start, stop=N):
    return {name: values[start:stop] for name, values in VALUES.items()}


@pytest.fixture
def table(tmp_path):
    return Table(tmp_path / "new" / "bpd.csv", tuple(VALUES), VALUES["index"])


def whole(table):
    assert begin(table, MADE_FOR) == 0
    append(table, rows(0, 2))
    append(table, rows(2))
    return table.path.read_bytes()


def test_a_table_read_back_is_what_was_written(table):
    """Nine digits hold a float32; a row is a line of text."""
    text = whole(table).decode()
    assert text.splitlines()[:3] == ["index,bpd,failed", "0,0.333333343,0", "3,nan,1"]
    found = read(table)
    for name, values in VALUES.items():
        np.testing.assert_array_equal(found[name].astype(values.dtype), values)


def test_cut_at_any_byte_and_continued_it_is_the_same_file(table):
    before = whole(table)
    ends = [i + 1 for i, byte in enumerate(before) if byte == ord("\n")]
    for cut in range(len(before) + 1):
        table.path.write_bytes(before[:cut])
        done = begin(table, MADE_FOR)
        assert done == max(sum(end <= cut for end in ends) - 1, 0)
        append(table, rows(done))
        assert table.path.read_bytes() == before


@pytest.mark.parametrize(
    "damage", [b"3,nan", b"3,nan,1,1", b"4,nan,1", b"3,na,1", b"3,\xff,1", b""]
)
def test_a_damaged_row_and_what_follows_it_are_computed_again(table, damage):
    before = whole(table)
    lines = before.split(b"\n")
    table.path.write_bytes(b"\n".join([*lines[:2], damage, *lines[3:]]))
    assert begin(table, MADE_FOR) == 1
    append(table, rows(1))
    assert table.path.read_bytes() == before


def test_a_complete_table_is_left_as_it_is(table, capsys):
    before = whole(table)
    assert begin(table, MADE_FOR) == N
    assert table.path.read_bytes() == before and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"step": 4}, "with step = 6, not 4"),
        (
            {"eval": MADE_FOR["eval"] | {"solver": "heun"}},
            "with eval.solver = 'tsit5', not 'heun'",
        ),
        ({"seed": 1}, "with seed = None, not 1"),
    ],
)
def test_a_table_made_for_something_else_is_kept_beside_a_new_one(
    table, capsys, change, difference
):
    before = whole(table)
    assert begin(table, MADE_FOR | change) == 0
    assert table.path.read_text() == "index,bpd,failed\n"
    assert table.path.with_name("bpd.old.csv").read_bytes() == before
    line = f"{table.path}: made {difference}; kept as bpd.old.csv, a new one begins\n"
    assert capsys.readouterr().out == line
    append(table, rows(0, 3))
    assert begin(table, MADE_FOR | change) == 3


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_table_of_which_it_is_not_known_what_it_was_made_for_is_not_continued(
    table, capsys, text
):
    whole(table)
    beside = table.path.with_name("bpd.csv.json")
    beside.unlink()
    if text is not None:
        beside.write_text(text)
    assert begin(table, MADE_FOR) == 0
    assert "nothing says for what" in capsys.readouterr().out
    assert json.loads(beside.read_text())["step"] == 6


def test_an_incomplete_table_is_not_read(table):
    begin(table, MADE_FOR)
    append(table, rows(0, 3))
    with pytest.raises(ValueError, match="has 3 of 5 rows in order; does another process"):
        read(table)


def test_a_table_that_another_process_put_away_is_not_read(table):
    with pytest.raises(ValueError, match=r"bpd.csv has 0 of 5 rows in order; .* Evaluate again$"):
        read(table)


def test_a_table_of_no_rows_has_its_columns(tmp_path):
    table = Table(tmp_path / "bpd.csv", tuple(VALUES), np.arange(0))
    assert begin(table, MADE_FOR) == 0
    assert {name: values.shape for name, values in read(table).items()} == dict.fromkeys(
        VALUES, (0,)
    )
