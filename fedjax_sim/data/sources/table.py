"""Tables: CSV files with the standard library's reader, Parquet files with pyarrow. One row is one example."""

import io
from csv import Error as CsvError
from csv import reader as csv_reader
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim._validate import InputError, shown
from fedjax_sim.data.federated import Dataset
from fedjax_sim.data.sources.places import existing
from fedjax_sim.data.sources.prepare import Table, split_table


def csv(
    *, path: str = "", label: str = "label", client: str = "client", test_fraction: float = 0.2, seed: int = 0
) -> Dataset:
    """A CSV file in UTF-8, its columns named in the first line and separated by commas, semicolons or tabs.

    All columns but those of labels and clients are features: numbers, standardised with the training rows' mean and
    deviation (float32 [n, features]). A column whose name begins with "@" is kept as a fact instead, without the "@";
    one that only numbers the rows, such as the index of a pandas frame, is left out. Blanks around names and values do
    not count, and what stands for a missing value, such as NA, null or an empty field, is refused.

    Args:
      path: the file.
      label: the column of labels, integers or strings; classes are in their order.
      client: the column that says whose each row is; the file may lack it under its default name.
      test_fraction: share of test rows: of each client's, rounded down, or of all, stratified by label.
      seed: what the test rows are drawn from.

    Raises:
      InputError: the file cannot be read, a line has too many or too few fields, a value is missing or no number.
    """
    file = existing(path, "a CSV file")
    return split_table(_read_csv(file), label, client, test_fraction, seed, f"CSV file {file}")


def _read_csv(file: Path) -> Table:
    try:
        data = file.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{file}: it cannot be read ({error.strerror}); give a CSV file") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}, line {line}: byte {data[error.start]:#x} is not UTF-8; save it as UTF-8") from None
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    lines, rows = [], []
    reader = csv_reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                lines.append(reader.line_num)
                rows.append(row)
    except CsvError as error:
        raise InputError(f"{file}, line {reader.line_num}: {error}; mend the quotes or the field") from None
    if not rows:
        raise InputError(f"{file}: it is empty; give a file with a line of names and one line a row")
    header = [name.strip() for name in rows[0]]
    if header[0] == "" and len({row[0] for row in rows[1:]}) == len(rows) - 1 > 1:  # as R and pandas write row names
        header[0] = "Unnamed: 0"
    for i, name in enumerate(header):
        if not name or name in header[:i]:
            trouble = f"names {name!r} twice" if name else f"has no name for column {i + 1}"
            raise InputError(f"{file}, line {lines[0]}: it {trouble}; give each column a name of its own")
    if len(rows) == 1:
        raise InputError(f"{file}, line {lines[0]}: no row follows the names; give at least two rows")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise InputError(f"{file}, line {line}: {len(row)} fields, but {len(header)} names; give one field a name")
    columns = dict(zip(header, zip(*rows[1:], strict=True), strict=True))
    return Table(str(file), columns, lambda i: f"line {lines[i + 1]}")


def parquet(
    *, path: str = "", label: str = "label", client: str = "client", test_fraction: float = 0.2, seed: int = 0
) -> Dataset:
    """A Parquet file, or a folder of them with the same columns; needs pyarrow. Rows count from 1 in errors.

    Everything else is as in `csv`.

    Args:
      path: the file or folder.
      label: the column of labels, integers or strings; classes are in their order.
      client: the column that says whose each row is; the file may lack it under its default name.
      test_fraction: share of test rows: of each client's, rounded down, or of all, stratified by label.
      seed: what the test rows are drawn from.

    Raises:
      InputError: pyarrow is not installed, the file cannot be read, a value is missing or no number.
    """
    file = existing(path, "a Parquet file")
    return split_table(_read_parquet(file), label, client, test_fraction, seed, f"Parquet file {file}")


def _read_parquet(file: Path) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            "data.name: parquet needs pyarrow, which is not installed; run: pip install 'fedjax-sim[datasets]'"
        ) from None

    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{file}: it cannot be read ({reason}); give a Parquet file, or write it again") from None
    names = [name.strip() for name in table.column_names]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{file}: column {twice[0]!r} is there twice; give each column a name of its own")
    if table.num_rows == 0:
        raise InputError(f"{file}: it has no rows; give at least two")
    columns = {}
    for name, field, values in zip(names, table.schema, table.columns, strict=True):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_decimal(kind)
        if not (number or text):
            raise InputError(f"{file}, column {name!r}: {shown(str(field.type))} is not read; give numbers or text")
        if values.null_count:
            row = values.is_null().to_pylist().index(True) + 1
            raise InputError(f"{file}, row {row}, column {name!r}: the value is missing; fill it in")
        columns[name] = np.asarray(values.to_pylist()) if number else values.to_pylist()
    return Table(str(file), columns, lambda i: f"row {i + 1}", index=pandas_index(table.schema))


def pandas_index(schema: Any) -> frozenset[str]:
    """The columns that pandas wrote for the index of a frame's rows, as the pyarrow schema says."""
    kept = (schema.pandas_metadata or {}).get("index_columns", [])
    return frozenset(name.strip() for name in kept if isinstance(name, str))  # others are ranges, kept nowhere
