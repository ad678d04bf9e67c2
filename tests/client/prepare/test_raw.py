"""Opening raw tables: plain, gzipped, tab-separated, broken."""

import gzip
from pathlib import Path

import pytest

from client.prepare.raw import connect, create_view, find_table, instant_sql, integer_sql, number_sql, read_table
from client.prepare.rejections import PrepareError, Rejections

TEXT = 'a,b,c\n1,x,\n2,"y, z",3\n'


def read(path: Path, columns=("b", "a"), rejections: Rejections | None = None):
    with connect(path.parent) as connection:
        return read_table(connection, path, columns, rejections or Rejections())


def test_plain_gzipped_and_tab_separated_tables_read_the_same(tmp_path: Path):
    plain, zipped, tabbed = tmp_path / "t.csv", tmp_path / "u.csv.gz", tmp_path / "t.txt"
    plain.write_text(TEXT)
    zipped.write_bytes(gzip.compress(TEXT.encode()))
    tabbed.write_text("a\tb\tc\n1\tx\t\n2\ty, z\t3\n")
    expected = [["x", "1", None], ["y, z", "2", "3"]]
    for path in (plain, zipped, tabbed):
        assert read(path, ("b", "a", "c")).to_numpy().tolist() == expected


def test_finds_the_plain_table_first_then_the_gzipped_one(tmp_path: Path):
    (tmp_path / "icu").mkdir()
    zipped = tmp_path / "icu" / "icustays.csv.gz"
    zipped.write_bytes(gzip.compress(b"a\n"))
    assert find_table(tmp_path, "icu/icustays") == zipped
    (tmp_path / "icu" / "icustays.csv").write_text("a\n")
    assert find_table(tmp_path, "icu/icustays").suffix == ".csv"


def test_a_missing_table_is_named_with_both_spellings(tmp_path: Path):
    with pytest.raises(PrepareError) as error:
        find_table(tmp_path, "icu/icustays")
    for word in (str(tmp_path), "icu/icustays.csv", "icu/icustays.csv.gz"):
        assert word in str(error.value)


def test_missing_columns_are_named_with_the_file(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text(TEXT)
    with pytest.raises(PrepareError, match=r"t\.csv: .*missing d, e; found a, b, c"):
        read(path, ("a", "d", "e"))


@pytest.mark.parametrize(("content", "message"), [(b"", "empty file"), (b"a,b,a\n", "a more than once")])
def test_a_table_without_usable_header_is_refused(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(PrepareError, match=message):
        read(path)


def test_a_truncated_gzip_is_named(tmp_path: Path):
    path = tmp_path / "t.csv.gz"
    rows = "".join(f"{i},{i * 7919 % 1013},{i * i}\n" for i in range(20_000))
    path.write_bytes(gzip.compress(("a,b,c\n" + rows).encode())[:-2000])
    with pytest.raises(PrepareError, match=r"t\.csv\.gz: .*cut short"):
        read(path)


def test_broken_lines_are_left_out_and_counted_without_their_text(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b,c\n1,x,3\n1,secret\n1,2,3,4\n1,\xff,3\n5,y,7\n")
    rejections = Rejections()
    assert read(path, rejections=rejections)["a"].tolist() == ["1", "5"]
    report = rejections.to_report()["t.csv"]
    assert {reason: entry["count"] for reason, entry in report.items()} == {
        "broken line: invalid encoding": 1,
        "broken line: missing columns": 1,
        "broken line: too many columns": 1,
    }
    assert report["broken line: missing columns"]["examples"] == ["line 3"]
    assert "secret" not in str(report)


def test_text_that_is_no_value_becomes_null_and_never_stops(tmp_path: Path):
    path = tmp_path / "t.csv"
    rows = ["7", "7.5", " 8 ", "1e3", "nan", "inf", "ERROR", "2180-07-23 14:00:00", ""]
    path.write_text("a,b\n" + "".join(f"{row},.\n" for row in rows))
    with connect(tmp_path) as connection:
        create_view(connection, "t", path, ["a"])
        numbers, integers, times = (
            [row[0] for row in connection.execute(f"SELECT {sql('a')} FROM t").fetchall()]
            for sql in (number_sql, integer_sql, instant_sql)
        )
    assert sorted(value for value in numbers if value is not None) == [7, 7.5, 8, 1000]
    assert sorted(value for value in integers if value is not None) == [7, 8, 1000]
    assert sum(value is not None for value in times) == 1
