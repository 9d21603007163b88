"""A finished run's likelihoods in files that other programs read: npz, HDF5, Parquet.

Rows are streamed: memory holds one image at a time. Shapes: N images, K candidates, L tokens.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import numpy.typing as npt

from avarc_cli.data.labels import UNKNOWN
from avarc_cli.errors import UsageError
from avarc_cli.names import to_json, to_text
from avarc_cli.outputs import HDF5, NPZ, PARQUET, check_new_folder, check_output
from avarc_cli.progress import Progress, StartProgress, silent
from avarc_cli.results.prediction_files import import_pyarrow
from avarc_cli.results.read_run import SavedRun
from avarc_cli.storage import new_folder, replacing
from avarc_cli.work.locks import only_writer

WITHOUT_PYARROW = "export to .npz or .h5"


def export_run(
    run: SavedRun,
    out: Path,
    *,
    classes: str | None = None,
    per_token: bool = False,
    overwrite: bool = False,
    progress: StartProgress = silent,
) -> tuple[int, ...]:
    """Write a run's likelihoods; the format follows from the name.

    `.npz`, `.h5` or `.hdf5`, `.parquet`: one file for all images. A name without a suffix: a folder with one npz per
    image. `out` appears when the export is complete.

    Args:
        classes: only these candidates, as in data.labels.resolve_classes; None for all.
        per_token: the log-probability of every token instead of their sum.
        overwrite: replace a file of the same kind. A folder is never replaced.
        progress: opens the bar "writing".
    Returns: shape of log_likelihood, (N, K) or (N, K, L); images of which the plan dropped candidates have fewer.
    Raises: UsageError as `writer`, for classes that are not candidates, for likelihoods that were not saved, and for
        one file of a run whose plan drops candidates;
        AvarcError for a corrupt run; OSError.
    """
    write = writer(out, overwrite=overwrite)
    columns = run.columns(classes)
    check_shape(run, out)
    table = Table(run, columns, per_token)
    with (
        progress("writing", len(run.records)) as bar,
        only_writer(out),
        new_folder(out) if out.suffix == "" else replacing(out) as temporary,
    ):
        write(table, temporary, bar.update)
    return table.shape


def check_shape(run: SavedRun, out: Path) -> None:
    """Raises: UsageError for one file of a run whose plan drops candidates."""
    if out.suffix and run.drops_candidates:
        raise UsageError(
            f"'{run.path}' has no likelihoods of all candidates of an image",
            f"its plan {run.protocol['plan']} drops some before all tokens are scored",
            "export to a folder (a name without suffix), export the token cache, or classify with --plan exhaustive",
        )


@dataclass(frozen=True)
class Table:
    """What is exported: small columns that fit into memory, and log_likelihood row by row."""

    run: SavedRun
    """A finished one."""

    columns: npt.NDArray[np.int64]
    """Positions of the classes among the run's candidates, (K,)."""

    per_token: bool
    """Whether log_likelihood has an entry for every token."""

    @property
    def small(self) -> dict[str, Any]:
        """Every array except log_likelihood; `protocol` is run.json as text."""
        run, records = self.run, self.run.records
        return {
            "candidates": run.candidates[self.columns],
            "counts_as": np.array(run.recorded("counts_as"), dtype=np.int64)[self.columns],
            "class_ids": _texts(run.recorded("candidate_ids"))[self.columns],
            "class_names": _texts(run.recorded("candidate_names"))[self.columns],
            "gt_label": np.array([UNKNOWN if r["label"] is None else r["label"] for r in records], dtype=np.int64),
            "prediction": np.array([r["prediction"] for r in records], dtype=np.int64),
            "path": _texts(r["path"] for r in records),
            "sequence_length": np.int64(run.sequence_length),
            "protocol": np.str_(to_json(run.protocol, sort_keys=True)),
        }

    @property
    def dtype(self) -> npt.DTypeLike:
        return np.float32 if self.per_token else np.float64

    @property
    def shape(self) -> tuple[int, ...]:
        """Of log_likelihood: (N, K), or (N, K, L) by token."""
        length = (self.run.sequence_length,) if self.per_token else ()
        return (len(self.run.records), len(self.columns), *length)

    def rows(self) -> Iterator[npt.NDArray[Any]]:
        """log_likelihood, image by image."""
        read = self.run.token_log_prob if self.per_token else self.run.log_likelihood
        for record in self.run.records:
            yield read(record["index"])[self.columns]

    def of_image(self, index: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[Any]]:
        """Positions among `columns` of the candidates that an image has, (n,), and their log_likelihood."""
        read = self.run.token_log_prob if self.per_token else self.run.log_likelihood
        row = {class_id: i for i, class_id in enumerate(self.run.scored(index).tolist())}
        ids = self.run.candidates[self.columns].tolist()
        there = [position for position, class_id in enumerate(ids) if class_id in row]
        return np.array(there, dtype=np.intp), read(index)[[row[ids[position]] for position in there]]


def _texts(names: Iterable[str]) -> npt.NDArray[np.str_]:
    return np.array([to_text(name) for name in names], dtype=np.str_)


def writer(out: Path, *, overwrite: bool) -> Callable[[Table, Path, Progress], None]:
    """The function that writes this kind of file.

    Raises: UsageError for an unknown suffix or a missing package, and as `outputs.check_output`.
    """
    if out.suffix not in _WRITERS:
        raise UsageError(
            f"cannot export to '{out.name}'",
            f"there is no format '{out.suffix}'",
            "name a file ending in .npz, .h5 or .parquet, or a folder (no suffix) for one npz per image",
        )
    if out.suffix == ".parquet":
        import_pyarrow(WITHOUT_PYARROW)
    if out.suffix == "":
        check_new_folder(out)
    else:
        check_output(out, NPZ, HDF5, PARQUET, overwrite=overwrite)
    return _WRITERS[out.suffix]


def _write_folder(table: Table, folder: Path, progress: Progress) -> None:
    small = table.small
    for i, record in enumerate(table.run.records):
        there, row = table.of_image(record["index"])
        own = {name: small[name][i] for name in ("gt_label", "prediction", "path")}
        own |= {name: small[name][there] for name in ("candidates", "counts_as", "class_ids", "class_names")}
        own |= {name: small[name] for name in ("sequence_length", "protocol")}
        np.savez(folder / f"{record['index']}.npz", allow_pickle=False, log_likelihood=row, **own)
        progress(i + 1)


def _write_npz(table: Table, path: Path, progress: Progress) -> None:
    """As np.savez, but log_likelihood is written row by row."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, array in table.small.items():
            with _new_member(archive, name) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
        with _new_member(archive, "log_likelihood") as file:
            descr = np.lib.format.dtype_to_descr(np.dtype(table.dtype))
            header = {"descr": descr, "fortran_order": False, "shape": table.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for i, row in enumerate(table.rows()):
                file.write(np.ascontiguousarray(row, dtype=table.dtype).tobytes())
                progress(i + 1)


def _new_member(archive: zipfile.ZipFile, name: str) -> AbstractContextManager[IO[bytes]]:
    # Not `writestr`, which stores the time: the same run gives the same bytes.
    return archive.open(f"{name}.npy", "w", force_zip64=True)


def _write_hdf5(table: Table, path: Path, progress: Progress) -> None:
    with h5py.File(path, "w") as file:
        for name, array in table.small.items():
            text = np.asarray(array).dtype.kind == "U"
            file[name] = np.asarray(array, dtype=h5py.string_dtype()) if text else array
        rows = file.create_dataset("log_likelihood", shape=table.shape, dtype=table.dtype)
        for i, row in enumerate(table.rows()):
            rows[i] = row
            progress(i + 1)


def _write_parquet(table: Table, path: Path, progress: Progress) -> None:
    """One row per image; what is the same for all images is JSON in the schema's metadata."""
    arrow, parquet = import_pyarrow(WITHOUT_PYARROW)
    small = table.small
    per_image = {"path": arrow.string(), "gt_label": arrow.int64(), "prediction": arrow.int64()}
    value = arrow.list_(arrow.from_numpy_dtype(np.dtype(table.dtype)))
    likelihood = arrow.list_(value) if table.per_token else value
    shared = {
        name: json.dumps(small[name].tolist()) for name in ("candidates", "counts_as", "class_ids", "class_names")
    }
    shared |= {"sequence_length": str(small["sequence_length"]), "protocol": str(small["protocol"])}
    schema = arrow.schema({**per_image, "log_likelihood": likelihood}, metadata=shared)
    with parquet.ParquetWriter(path, schema) as file:
        for i, row in enumerate(table.rows()):
            own = {name: [small[name][i].item()] for name in per_image}
            file.write_batch(arrow.record_batch({**own, "log_likelihood": [row.tolist()]}, schema=schema))
            progress(i + 1)


_WRITERS = {"": _write_folder, ".npz": _write_npz, ".h5": _write_hdf5, ".hdf5": _write_hdf5, ".parquet": _write_parquet}
