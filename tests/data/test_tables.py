"""Parquet and Arrow files, in the form in which the Hugging Face hub has image datasets."""

from __future__ import annotations

import builtins
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from small_datasets import picture

from avarc_cli.data import Preprocess, imagenet1k, open_images
from avarc_cli.data.arrow_messages import claimed_bytes
from avarc_cli.errors import UnreadableImage, UsageError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IDS = imagenet1k().ids
FIT = Preprocess("fit", 8)
NAMES = ["ant", "bee", "cat"]


def table(rows: list[dict], features: dict | None, image_type=None):
    kind = image_type or pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("image", kind)]
    if rows and "label" in rows[0]:
        fields.append(("label", pa.string() if isinstance(rows[0]["label"], str) else pa.int64()))
    schema = pa.schema(fields)
    if features is not None:
        schema = schema.with_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})
    return pa.Table.from_pylist(rows, schema=schema)


def hub(names: list[str]) -> dict:
    return {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}


def rows(labels, start: int = 0) -> list[dict]:
    return [
        {"image": {"bytes": picture(start + i), "path": f"x_{i}.png"}, "label": label} for i, label in enumerate(labels)
    ]


def write(path: Path, data, group: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(data, path, row_group_size=group)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, data.schema) as stream:
            stream.write_table(data, max_chunksize=group)
    return path


def classes(images) -> list[str | None]:
    return [images.class_names[k] if k >= 0 else None for k in images.labels]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_hub_dataset_has_its_images_labels_and_names(tmp_path, suffix):
    for i in range(2):
        write(tmp_path / f"data/test-0000{i}-of-00002.{suffix}", table(rows([2, 0, 1, -1, 2], start=5 * i), hub(NAMES)))
    images = open_images([tmp_path])
    assert classes(images) == ["cat", "ant", "bee", None, "cat"] * 2
    assert images.names[6] == f"data/test-00001-of-00002.{suffix}/0000001/x_1.png"
    again = pickle.loads(pickle.dumps(images))
    for i in (9, 0, 4, 5):  # from any row group, in any order
        (tmp_path / "reference").write_bytes(picture(i))
        assert np.array_equal(again.load(i, FIT), FIT(tmp_path / "reference"))
    part = images.select(["cat"], 1, None)
    assert len(part) == 1 and np.array_equal(part.load(0, FIT), images.load(0, FIT))


def test_a_class_list_in_imagenets_order_becomes_synsets(tmp_path):
    data = table(rows([0, 134, 517]), hub(list(imagenet1k().long_names)))
    images = open_images([write(tmp_path / "imagenet-1k/data/validation-00000-of-00014.parquet", data)])
    assert images.dataset == "imagenet-val"
    assert images.class_names == (IDS[0], IDS[134], IDS[517])  # includes both cranes


@pytest.mark.parametrize(
    ("labels", "features", "expected"),
    [
        (["bee", "ant"], None, ["bee", "ant"]),
        ([4, 2], None, ["4", "2"]),
        ([1, 0], {"label": {"_type": "Value"}}, ["1", "0"]),
        ([1, 0], hub(["crane", "crane"]), ["crane (1)", "crane (0)"]),
    ],
)
def test_labels_without_the_hubs_metadata(tmp_path, labels, features, expected):
    images = open_images([write(tmp_path / "x.parquet", table(rows(labels), features))])
    assert classes(images) == expected


def test_numbers_without_names_are_imagenet_indices_in_imagenet_datasets(tmp_path):
    path = write(tmp_path / "x.parquet", table(rows([388, 1]), None))
    assert open_images([path], "imagenet-val").class_names == (IDS[1], IDS[388])


def columns(path: Path, **values) -> Path:
    """A table of four images with these columns."""
    pq.write_table(pa.table({"image": pa.array([picture(i) for i in range(4)]), **values}), path)
    return path


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(list("badc"), pa.large_string()), list("badc")),
        (pa.array(list("badb")).dictionary_encode(), list("badb")),
        (pa.array([7, 3, 7, 0]).dictionary_encode(), list("7370")),
        (pa.array([7.0, 3.0, None, float("nan")]), ["7", "3", None, None]),
        (pa.array([True, False, None, True]), ["True", "False", None, "True"]),
        (pa.array([7, 3, -1, None], pa.int8()), ["7", "3", None, None]),
        (pa.array(["7.0", "3.0", "0.0", None]), ["7", "3", "0", None]),
    ],
)
def test_labels_may_have_any_type_that_can_name_a_class(tmp_path, values, expected):
    assert classes(open_images([columns(tmp_path / "x.parquet", label=values)])) == expected


@pytest.mark.parametrize("name", ["wnid", "synset", "class_name", "label_name", "class_id", "Label", "TARGET"])
def test_label_columns_are_found_by_name_in_any_case(tmp_path, name):
    assert classes(open_images([columns(tmp_path / "x.parquet", **{name: list("badc")})])) == list("badc")


def test_names_are_preferred_to_numbers_and_the_rest_is_reported(tmp_path):
    images = open_images([columns(tmp_path / "x.parquet", label=[1, 0, 3, 2], text=list("stuv"), wnid=list("badc"))])
    assert classes(images) == list("badc")
    assert "columns that are not used as classes: label" in images.notes


def test_without_a_label_column_those_that_may_be_one_are_named(tmp_path):
    images = open_images([columns(tmp_path / "x.parquet", y=[1, 0, 3, 2], label=[[1], [2], [3], [4]])])
    assert images.class_names == () and "columns that are not used as classes: label, y" in images.notes


def test_fractions_are_no_classes(tmp_path):
    images = open_images([columns(tmp_path / "x.parquet", label=[0.1, 1.0, 2.0, 3.0])])
    assert images.class_names == () and "column 'label' contains fractions: not used as classes" in images.notes


def test_the_image_column_goes_by_its_name(tmp_path):
    other = pa.array([picture(9)] * 4)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"mask": other, "image": pa.array([picture(i) for i in range(4)])}), path)
    (tmp_path / "reference").write_bytes(picture(1))
    assert np.array_equal(open_images([path]).load(1, FIT), FIT(tmp_path / "reference"))
    pq.write_table(pa.table({"left": other, "right": other}), path)
    with pytest.raises(UsageError, match=r"which column of .* has the images") as error:
        open_images([path])
    assert "left, right" in error.value.why


def test_images_may_be_a_column_of_bytes_without_labels(tmp_path):
    data = table([{"image": picture(0)}, {"image": None}], None, image_type=pa.binary())
    images = open_images([write(tmp_path / "x.parquet", data)])
    assert images.labels.tolist() == [-1, -1] and images.load(0, FIT).shape == (8, 8, 3)
    with pytest.raises(UnreadableImage, match="row 1"):
        images.load(1, FIT)


def test_a_row_may_refer_to_an_image_file_beside_the_table(tmp_path):
    (tmp_path / "beside.png").write_bytes(picture(3))
    data = table(
        [{"image": {"bytes": None, "path": "beside.png"}}, {"image": {"bytes": None, "path": "gone.png"}}], None
    )
    images = open_images([write(tmp_path / "x.parquet", data)])
    assert images.load(0, FIT).shape == (8, 8, 3)
    with pytest.raises(UnreadableImage):
        images.load(1, FIT)


def test_a_table_without_images_is_rejected_with_its_columns(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a"], "number": [1]}), path)
    with pytest.raises(UsageError, match="no column of images") as error:
        open_images([path])
    assert "text (string), number (int64)" in error.value.why


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.98])
def test_a_corrupt_table_is_a_usage_error_or_an_unreadable_image(tmp_path, suffix, kept):
    path = write(tmp_path / f"x.{suffix}", table(rows([0, 1, 2]), hub(NAMES)))
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    with pytest.raises((UsageError, UnreadableImage)) as error:
        read_all(path)
    assert str(path) in error.value.what


def read_all(path: Path) -> None:
    images = open_images([path])
    for i in range(len(images)):
        images.load(i, FIT)
    if len(images) < 3:
        raise UsageError(f"'{path}' is truncated", "undetectable: an Arrow stream may end after any batch")


def test_labels_without_a_name_and_files_with_other_columns_are_rejected(tmp_path):
    with pytest.raises(UsageError, match="have no class name"):
        open_images([write(tmp_path / "a.parquet", table(rows([3]), hub(NAMES)))])
    write(tmp_path / "set/1.parquet", table(rows([0]), hub(NAMES)))
    write(tmp_path / "set/2.parquet", table(rows([0]), hub(NAMES[::-1])))
    with pytest.raises(UsageError, match="other columns"):
        open_images([tmp_path / "set"])


def test_without_pyarrow_the_error_names_the_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", table(rows([0]), hub(NAMES)))
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="needs pyarrow") as error:
        open_images([path])
    assert "avarc[data]" in error.value.fix


def test_folders_called_key_and_value_are_a_column(tmp_path):
    for name in ("label=ice%20cream/split=a", "label=cr%C3%AApe/split=a", "label=__HIVE_DEFAULT_PARTITION__/split=a"):
        write(tmp_path / "set" / name / "part-0.parquet", pa.table({"image": pa.array([picture()])}))
    images = open_images([tmp_path / "set"])
    assert classes(images) == [None, "crêpe", "ice cream"]
    assert any("classes in the names of folders (label=...)" in note for note in images.notes)
    one = tmp_path / "set/label=ice%20cream/split=a/part-0.parquet"
    assert classes(open_images([one])) == ["ice cream"]


def test_numbers_in_names_of_folders_are_class_numbers(tmp_path):
    for number in (3, 11):
        write(tmp_path / f"imagenet/val/Label={number}/0.parquet", pa.table({"image": pa.array([picture()])}))
    assert classes(open_images([tmp_path / "imagenet"], "imagenet-val")) == [IDS[11], IDS[3]]


def test_splits_in_names_of_folders_need_a_choice(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"split={split}/0.parquet", pa.table({"image": pa.array([picture()])}))
    with pytest.raises(UsageError, match="several splits"):
        open_images([tmp_path])


LEFT = ("cache-1f2e.arrow", "tmp_x.arrow", "indices.arrow", "_metadata.arrow", "_delta_log/0.checkpoint.arrow")


def test_what_libraries_leave_beside_the_data_is_not_counted_twice(tmp_path):
    for name in ("data-00000-of-00001.arrow", *LEFT):
        write(tmp_path / "set" / name, table(rows([2, 0]), hub(NAMES)))
    for name in ("dataset_info.json", "state.json", "_SUCCESS", "x.crc", "x.idx", ".part-0.crc", "README.md"):
        (tmp_path / "set" / name).write_text("{}")
    images = open_images([tmp_path / "set"])
    assert classes(images) == ["cat", "ant"]
    assert all(any(name in note for note in images.notes) for name in LEFT)
    assert "files that are not used: 2 .json, 1 .crc, 1 .idx, 1 .md, 1 without a suffix" in images.notes
    assert len(open_images(sorted((tmp_path / "set").glob("*.arrow")))) == 2  # as a shell lists them
    assert len(open_images([tmp_path / "set" / LEFT[0]])) == 2  # named alone, it is meant
    (tmp_path / "set/data-00000-of-00001.arrow").unlink()
    with pytest.raises(UsageError, match="holds no dataset"):
        open_images([tmp_path / "set"])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_images_may_have_any_type_of_bytes(tmp_path, kind):
    labels = pa.array(["ant", "bee"], pa.string_view() if kind == pa.binary_view() else pa.large_string())
    path = write(tmp_path / "x.parquet", pa.table({"image": pa.array([picture(0), picture(1)], kind), "label": labels}))
    images = open_images([path])
    assert classes(images) == ["ant", "bee"] and images.load(1, FIT).shape == (8, 8, 3)


def test_a_known_dataset_without_a_single_label_says_so(tmp_path):
    path = write(tmp_path / "x.parquet", pa.table({"image": pa.array([picture()]), "caption": pa.array([b"x"])}))
    said = "ImageNet-R: not a single label was found"
    assert any(said in note for note in open_images([path], "imagenet-r").notes)
    assert not any(said in note for note in open_images([path]).notes)


@pytest.fixture(params=["stream", "file"])
def arrow(request, tmp_path):
    """An Arrow table without compression, and its bytes."""
    path, data = tmp_path / "x.arrow", table(rows([0, 1, 2]), hub(NAMES))
    opened = pa.ipc.new_stream if request.param == "stream" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, opened(file, data.schema) as writer:
        writer.write_table(data)
    return path, path.read_bytes()


@pytest.mark.parametrize("offset", [2**20, 2**31 - 1, -1, -(2**31)])
def test_offsets_that_lead_out_of_an_arrow_table_are_refused(arrow, offset):
    path, data = arrow
    lengths = np.cumsum([0, *(len(picture(i)) for i in range(3))]).astype("<i4").tobytes()  # of the column of bytes
    assert data.count(lengths) == 1
    wrong = lengths[:4] + np.array([offset], "<i4").tobytes() + lengths[8:]
    path.write_bytes(data.replace(lengths, wrong))
    with pytest.raises(UsageError, match="cannot read the table"):
        open_images([path])


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_table_that_claims_more_rows_than_it_has_bytes_is_refused(tmp_path, suffix):
    nothing = pa.nulls(10**7, pa.null())  # takes no bytes
    data = pa.table({"image": pa.StructArray.from_arrays([nothing], ["bytes"])})
    path = write(tmp_path / f"x.{suffix}", data, group=10**7)
    assert path.stat().st_size < 10**6
    with pytest.raises(UsageError, match="cannot read the table") as error:
        open_images([path])
    assert "10,000,000 rows" in error.value.why


def zeros_in_little(path: Path, compression: str, kind: str) -> Path:
    """Images of zeros, 128 MiB in all, compressed."""
    data = pa.table({"image": [bytes(2**26), bytes(2**26)]})
    if kind == "parquet":
        pq.write_table(data, path, compression=compression)
        return path
    opened, options = getattr(pa.ipc, f"new_{kind}"), pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(path), "wb") as file, opened(file, data.schema, options=options) as writer:
        writer.write_table(data)
    return path


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_a_table_that_claims_far_more_data_than_it_has_bytes_is_refused(tmp_path, kind):
    path = zeros_in_little(tmp_path / f"x.{'parquet' if kind == 'parquet' else 'arrow'}", "zstd", kind)
    assert path.stat().st_size < 10**6
    with pytest.raises(UsageError, match="cannot read the table") as error:
        open_images([path])
    assert "bytes of data" in error.value.why


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_compressed_arrow_table_is_read(tmp_path, compression, kind):
    data = table(rows([0, 1, 2]), hub(NAMES))
    opened, options = getattr(pa.ipc, f"new_{kind}"), pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, opened(file, data.schema, options=options) as writer:
        writer.write_table(data, max_chunksize=2)
    assert classes(open_images([tmp_path / "x.arrow"])) == NAMES
    with pa.memory_map(str(tmp_path / "x.arrow")) as mapped:
        assert claimed_bytes(mapped) > sum(len(picture(i)) for i in range(3))


def test_metadata_that_is_nested_too_deeply_is_as_none(tmp_path):
    data = table(rows(["ant"]), None).replace_schema_metadata({b"huggingface": b'{"info":' * 50_000})
    assert classes(open_images([write(tmp_path / "x.parquet", data)])) == ["ant"]


def pointing(folder: Path, name: str) -> Path:
    data = table([{"image": {"bytes": None, "path": name}}], None)
    return write(folder / "tables" / "x.parquet", data)


@pytest.mark.parametrize("how", ["absolute", "..", "link", "linked folder"])
def test_a_path_in_a_table_does_not_lead_out_of_its_folder_unless_that_is_allowed(tmp_path, how):
    outside, inside = tmp_path / "outside", tmp_path / "tables"
    outside.mkdir(), inside.mkdir()
    (outside / "secret.png").write_bytes(picture(3))
    (inside / "link.png").symlink_to(outside / "secret.png")
    (inside / "linked").symlink_to(outside)
    name = {
        "absolute": str(outside / "secret.png"),
        "..": "../outside/secret.png",
        "link": "link.png",
        "linked folder": "linked/secret.png",
    }[how]
    path = pointing(tmp_path, name)
    with pytest.raises(UnreadableImage) as error:
        open_images([path]).load(0, FIT)
    assert "--allow-outside" in error.value.why
    assert open_images([path], allow_outside=True).load(0, FIT).shape == (8, 8, 3)


def test_the_folder_is_the_one_that_was_named_else_that_of_the_table(tmp_path):
    path = pointing(tmp_path, "../pictures/a")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a").write_bytes(picture(3))
    with pytest.raises(UnreadableImage):
        open_images([path]).load(0, FIT)
    assert open_images([tmp_path]).load(0, FIT).shape == (8, 8, 3)
