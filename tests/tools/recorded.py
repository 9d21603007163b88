"""Read what same_output.py recorded, and list every value that two recordings do not share bit for bit.

A file becomes plain values (dict, list, str, numbers, arrays), `Reader.normalize` removes what may differ between two
runs of the same code, `flatten` gives every remaining value a name, and `difference` compares two of one name.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

# Times (`stamps` are those of files), versions, facts about the machine; `bytes`: of a cache, whose header has some.
RUN_DEPENDENT = {
    "seconds",
    "seconds_per_image",
    "images_per_second",
    "versions",
    "avarc",
    "device_name",
    "threads",
    "bytes",
    "stamps",
}
LAYOUT_KEYS = ("patch_nums", "scales", "layout")
WORDING = "wording"  # names of values that only people read: reported, but no failure
PROSE = {"note", "notes"}  # JSON keys whose text is of that kind
NUMBER = re.compile(r"(?<![\w#.])[+−-]?\d[\d.,]*(?:e[+-]?\d+)?")
SPEED = re.compile(r"<b>[^<]*</b>(?=<span>(?:images a second|an image)</span>)")  # in a report
IGNORED = {".log", ".lock"}
SAFETENSORS = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2", "I64": "i8", "I32": "i4", "U8": "u1", "BOOL": "u1"}


def layout(value: Any) -> Any:
    """Any spelling of where tokens lie as [[height, width], ...], or the value itself if it is none.

    Cache format 1 wrote {"patch_nums": [1, 2, 3]}, format 2 writes {"layout": {"grids": [[1, 1], [2, 2], [3, 3]]}}.
    """
    if isinstance(value, dict):
        value = next((value[key] for key in ("grids", "grid", *LAYOUT_KEYS) if key in value), value)
    if isinstance(value, str) and re.fullmatch(r"\d+(x\d+)?(,\d+(x\d+)?)*", value):
        value = [[int(side) for side in grid.split("x")] for grid in value.split(",")]
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list):
        return value
    grids = [grid if isinstance(grid, list) else [grid] for grid in value]
    if not all(len(grid) in (1, 2) and all(type(side) is int for side in grid) for grid in grids):
        return value
    return [grid * (3 - len(grid)) for grid in grids]


class Recording:
    """A folder that `same_output.py record` made."""

    def __init__(self, path: Path) -> None:
        self.about = json.loads((path / "about.json").read_text())
        self.files = path.resolve() / "files"
        self._replace = {str(path.resolve()): "<recording>", self.about["checkout"]: "<checkout>"}

    def names(self) -> set[Path]:
        """The files to compare, relative to `files`."""
        found = (path for path in self.files.rglob("*") if path.is_file() and path.suffix not in IGNORED)
        return {path.relative_to(self.files) for path in found}

    def failed(self, item: str) -> bool:
        """Whether the command ended with an error. `inputs` is no command."""
        code = self.files / item / "exit.json"
        return code.exists() and code.read_text() != "0"

    def values(self, name: Path) -> dict[str, Any]:
        """Every value of a file by its name, normalized."""
        path = self.files / name
        read = _READERS.get(path.suffix, _read_bytes)
        return dict(flatten("", self.normalize(read(path))))

    def normalize(self, value: Any) -> Any:
        """`value` without what depends on the run, and in one spelling."""
        if isinstance(value, dict):
            return self._normalize_dict(value)
        if isinstance(value, (list, tuple)):
            return _array_of([self.normalize(item) for item in value])
        if isinstance(value, bytes):
            return self.normalize(value.decode(errors="backslashreplace"))
        if isinstance(value, str):
            return self._normalize_text(value)
        if isinstance(value, np.ndarray) and value.dtype.kind in "SOU":
            texts = [item.decode() if isinstance(item, bytes) else str(item) for item in value.ravel()]
            return self.normalize(texts[0]) if value.ndim == 0 else np.array(texts).reshape(value.shape)
        return np.asarray(value) if isinstance(value, np.generic) else value

    def _normalize_dict(self, values: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        has_layout = any(key in LAYOUT_KEYS for key in values)
        for key, value in values.items():
            if key in RUN_DEPENDENT or (has_layout and key in ("format", "inferred")):
                continue
            if key in LAYOUT_KEYS:
                result["layout"] = self.normalize(layout(value))
            elif key in ("models", "tokenizers") and isinstance(value, list):  # a new model moves no other's facts
                result[key] = {entry["name"]: self.normalize(entry) for entry in value}
            else:
                result[f"{key} ({WORDING})" if key in PROSE else key] = self.normalize(value)
        return result

    def _normalize_text(self, text: str) -> Any:
        for old, new in self._replace.items():
            text = text.replace(old, new)
        if text[:1] in ("{", "["):  # JSON in an attribute, an array or a page
            try:
                return self.normalize(json.loads(text))
            except ValueError:
                pass
        return text


def _array_of(values: list[Any]) -> Any:
    """Numbers of one type as an array, so that a difference is reported once; anything else as it is."""
    kinds = {type(value) for value in values}
    if kinds == {float} or (kinds == {int} and all(abs(value) < 2**63 for value in values)):
        return np.array(values)
    return values


def flatten(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of every leaf; an empty container is one, too."""
    if isinstance(value, (dict, list)) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flatten(f"{name}/{key}" if name else str(key), item)
    else:
        yield name, value


def difference(a: Any, b: Any) -> str | None:
    """What differs between two values, in words; None if they are the same bit for bit."""
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        if type(a) is type(b) and repr(a) == repr(b):
            return None
        if isinstance(a, str) and isinstance(b, str):  # of a long text, what is around the first change
            first_change = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            a, b = (text[max(0, first_change - 30) :] for text in (a, b))
        return f"{_short(a)} became {_short(b)}"
    text = a.dtype.kind == b.dtype.kind == "U"  # whose width is no fact
    if a.shape != b.shape or (a.dtype != b.dtype and not text):
        return f"{_short(a)} became {_short(b)}"
    same = (a == b) if text else (_bytes_of(a) == _bytes_of(b)).all(1).reshape(a.shape)
    where = np.argwhere(~same)
    if not len(where):
        return None
    first = tuple(where[0].tolist())
    words = f"{len(where):,} of {a.size:,} values differ, first at {list(first)}: {a[first]} became {b[first]}"
    if a.dtype.kind in "iuf":
        change = np.abs(a[~same].astype(np.float64) - b[~same].astype(np.float64))
        words += f"; largest difference {change.max():.3g}"
    return words


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """(size, itemsize)."""
    return np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8)


def _short(value: Any, width: int = 100) -> str:
    text = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def compare(path_a: Path, path_b: Path, expected: list[str]) -> int:
    """Print every difference between two recordings; returns the number of those that no pattern expects."""
    a, b = Recording(path_a), Recording(path_b)
    for fact, value in a.about["machine"].items():
        if value != (other := b.about["machine"].get(fact)):
            print(f"warning: recorded with other {fact}, so numbers may differ: {value} and {other}")
    left_out = set(a.about["commands"]) ^ set(b.about["commands"])
    if left_out:
        print(f"warning: {len(left_out)} commands are not compared, since only one recording has them (--only)")
    both: dict[str, list[Path]] = {}
    for name in sorted(a.names() | b.names()):
        if name.parts[0] not in left_out:
            both.setdefault(name.parts[0], []).append(name)
    failures = total = 0
    for item, names in both.items():
        count, lines, failed = _compare_item(a, b, names, expected)
        note = "  (the command FAILED in both)" if a.failed(item) and b.failed(item) else ""
        print("\n".join([f"{'DIFFERS' if failed else 'same':8} {count:>9,} values  {item}{note}", *lines]))
        total, failures = total + count, failures + failed
    print(f"{total:,} values, {failures} differences: {a.about['commit']} and {b.about['commit']}")
    return failures


def _compare_item(a: Recording, b: Recording, names: list[Path], expected: list[str]) -> tuple[int, list[str], int]:
    """Of the files of one command: values compared, lines to print, and differences that nothing excuses."""
    count, lines, failed = 0, [], 0
    for name in names:
        there = [(r.files / name).exists() for r in (a, b)]
        values_a, values_b = (r.values(name) if here else {} for r, here in zip((a, b), there, strict=True))
        if not all(there):
            values_a, values_b = ({"file": "here" if here else "missing"} for here in there)
        for key in dict.fromkeys([*values_a, *values_b]):
            if key not in values_a or key not in values_b:
                words: str | None = f"only in {'B' if key in values_b else 'A'}: {_short((values_a | values_b)[key])}"
            else:
                words = difference(values_a[key], values_b[key])
                count += values_a[key].size if isinstance(values_a[key], np.ndarray) else 1
            if words is None:
                continue
            place = f"{name} {key}"
            excuse = WORDING if f"({WORDING})" in key else "expected" if _matches(place, expected) else ""
            failed += not excuse
            lines.append(f"    {f'[{excuse}] ' if excuse else ''}{place}: {words}")
    return count, lines, failed


def _matches(place: str, patterns: list[str]) -> bool:
    return any(fnmatch(place, pattern) for pattern in patterns)


def _read_bytes(path: Path) -> Any:
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _read_json(path: Path) -> Any:
    try:
        return {"": json.loads(path.read_text())}
    except ValueError:  # stdout of a command that failed
        return {"text": path.read_text()}


def _read_jsonl(path: Path) -> Any:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _read_npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _read_hdf5(path: Path) -> Any:
    with h5py.File(path) as file:
        values: dict[str, Any] = {f"@{name}": value for name, value in file.attrs.items()}

        def visit(name: str, node: Any) -> None:
            values[name] = {f"@{key}": value for key, value in node.attrs.items()}
            if isinstance(node, h5py.Dataset):
                values[name] |= {"chunks": node.chunks, "compression": node.compression, "values": node[()]}

        file.visititems(visit)
        return values


def _read_safetensors(path: Path) -> Any:
    """Tensors and metadata, without the library: it has no bfloat16 in numpy."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    tensors: dict[str, Any] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = (end + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(content[start:stop], SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
    return {"metadata": header.get("__metadata__", {}), "tensors": tensors, **_read_bytes(path)}


def _read_parquet(path: Path) -> Any:
    from pyarrow import parquet

    table = parquet.read_table(path)
    metadata = table.schema.metadata or {}
    columns = {name: table[name].to_pylist() for name in table.column_names}
    types = {field.name: str(field.type) for field in table.schema}
    return {"metadata": {key.decode(): value for key, value in metadata.items()}, "types": types, "columns": columns}


def _read_png(path: Path) -> Any:
    with Image.open(path) as image:
        return {"pixels": np.asarray(image), **_read_bytes(path)}


def _read_html(path: Path) -> Any:
    """The numbers, pictures and JSON of a page; its words and style are for people."""
    page = SPEED.sub("", path.read_text())
    protocols = [html.unescape(block) for block in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)]
    page = re.sub(r"<(pre|style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    pictures = [hashlib.sha256(base64.b64decode(data)).hexdigest() for data in re.findall(r"base64,([\w+/=]+)", page)]
    page = re.sub(r"base64,[\w+/=]+", "", page)
    return {
        "protocols": protocols,
        "pictures": np.array(pictures, dtype=np.str_),
        "numbers": np.array(NUMBER.findall(page), dtype=np.str_),
        f"page ({WORDING})": NUMBER.sub("#", page),
    }


_READERS = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".npz": _read_npz,
    ".h5": _read_hdf5,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
    ".png": _read_png,
    ".html": _read_html,
}
