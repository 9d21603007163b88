"""Tables of pandas, which is an optional package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from avarc_cli.errors import UsageError

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(rows: Any, *, types: Mapping[str, str] | None = None, **options: Any) -> DataFrame:
    """A table of these rows.

    Args:
        rows, options: as of pandas.DataFrame. types: of columns that are not to be inferred, as pandas names them.
    Raises: UsageError without pandas.
    """
    try:
        import pandas
    except ImportError:
        raise UsageError(
            "pandas is not installed", "tables are made with it", "pip install 'avarc[notebook]'"
        ) from None
    table: DataFrame = pandas.DataFrame(rows, **options)
    return table.astype(types) if types else table
