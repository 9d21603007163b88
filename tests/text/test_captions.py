"""Captions from files and templates, and what is said about wrong ones."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from avarc_cli.errors import UsageError
from avarc_cli.text.captions import Captions, from_templates, read, template_names


@pytest.fixture
def write(tmp_path):
    def written(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return written


def shown(captions: Captions):
    """Candidate -> its captions."""
    return {
        name: [t for t, c in zip(captions.texts, captions.candidate, strict=True) if c == i]
        for i, name in enumerate(captions.ids)
    }


CSV = 'name,caption\ncat,a cat\ndog,a dog\ncat,"a tabby, asleep"\n'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("c.txt", "a cat\na dog\n", {"a cat": ["a cat"], "a dog": ["a dog"]}),
        ("c.txt", "\ufeffun été\r\na dog", {"un été": ["un été"], "a dog": ["a dog"]}),
        ("c.json", '["a cat", "a dog"]', {"a cat": ["a cat"], "a dog": ["a dog"]}),
        ("c.json", '{"cat": ["a cat", "a tabby"], "dog": "a dog"}', {"cat": ["a cat", "a tabby"], "dog": ["a dog"]}),
        ("c.csv", CSV, {"cat": ["a cat", "a tabby, asleep"], "dog": ["a dog"]}),
        ("c.CSV", "id,Caption,NAME\n1,a cat,cat\n", {"cat": ["a cat"]}),
    ],
)
def test_files_of_captions(write, name, content, expected):
    assert shown(read(write(name, content))) == expected


def test_equal_captions_of_any_format_are_the_same_captions(write):
    as_text, as_json = read(write("a.txt", "a cat\na dog\n")), read(write("b.json", '["a cat", "a dog"]'))
    assert as_text.digest == as_json.digest != read(write("c.txt", "a dog\na cat\n")).digest


WRONG = [
    ("c.txt", "", "is empty"),
    ("c.txt", "\n \n", "is empty"),
    ("c.txt", "a cat\n\na dog\n", "line 2"),
    ("c.txt", "a cat\na dog\na cat\n", "line 1 and line 3"),
    ("c.txt", "a cat\nA  Cat\n", "differ in case or spaces"),
    ("c.txt", "caf\xe9\n".encode("latin-1"), "line 1 has the byte 0xe9"),
    ("c.txt", "a cat\n".encode("utf-16"), "UTF-16"),
    ("c.txt", "a\0cat\n", "zero bytes"),
    ("c.txt", "x" * 5_001, "too long"),
    ("c.json", "{", "is not JSON"),
    ("c.json", "3", "it is a number"),
    ("c.json", "[]", "no captions"),
    ("c.json", "{}", "no captions"),
    ("c.json", '["a cat", 3]', "entry 2 is a number"),
    ("c.json", '{"cat": {"a": 1}}', "is an object"),
    ("c.json", '{"cat": []}', "a name without a caption"),
    ("c.json", '{"cat": "a cat", "cat": "another"}', "entry 1 and entry 2"),
    ("c.json", '{"cat": "a cat", "dog": ["a dog", "a cat"]}', "entry 1 ('cat') and entry 2 ('dog')"),
    ("c.json", '{"cat": "a cat", "Cat": "another"}', "differ in case only"),
    ("c.json", '{"": "a cat"}', "the name in entry 1"),
    ("c.json", '["a cat", " "]', "the caption in entry 2"),
    ("c.csv", "a cat\n", "no column name and caption"),
    ("c.csv", "name,caption\n", "no captions"),
    ("c.csv", "name,caption\ncat,a cat, asleep\n", "line 2 has 3 fields"),
    ("c.csv", 'name,caption\ncat,"a cat\n', "is not CSV"),
    ("c.csv", "name,caption\ncat,\n", "the caption in line 2"),
    ("c.csv", "name,caption\ncat,a cat\ndog,a cat\n", "line 2 and line 3"),
    ("c.tsv", "cat\ta cat\n", "files that end in .txt, .json, .csv, .safetensors"),
    ("c.safetensors", "no", "is no file of features"),
]


@pytest.mark.parametrize(("name", "content", "says"), WRONG)
def test_wrong_files_are_refused_with_the_place(write, name, content, says):
    with pytest.raises(UsageError) as error:
        read(write(name, content))
    assert says in str(error.value)


def features(**changes):
    """Tensors of two captions; None leaves one out."""
    made = {
        "sequence": np.ones((2, 3, 4), np.float32),
        "length": np.array([1, 3]),
        "pooled": np.ones((2, 5), np.float32),
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


def metadata(names=("cat", "dog"), **more):
    return {"names": json.dumps(names)} | {key: json.dumps(value) for key, value in more.items()}


def test_features_say_whose_they_are(tmp_path):
    save_file(features(), tmp_path / "f.safetensors", metadata())
    assert shown(read(tmp_path / "f.safetensors")) == {"cat": ["cat"], "dog": ["dog"]}
    names = metadata(("cat", "cat"), captions=["a cat", "a tabby"])
    save_file(features(), tmp_path / "g.safetensors", names)
    assert shown(read(tmp_path / "g.safetensors")) == {"cat": ["a cat", "a tabby"]}


NAN = np.ones((2, 3, 4), np.float32)
NAN[1, 0, 2] = np.nan


@pytest.mark.parametrize(
    ("tensors", "names", "says"),
    [
        (features(sequence=None), metadata(), "no tensor 'sequence'"),
        (features(length=None), metadata(), "no tensor 'length'"),
        (features(sequence=NAN), metadata(), "row 1 that are not finite"),
        (features(sequence=np.ones((2, 3, 4))), metadata(), "'sequence' is F64, it must be F32"),
        (features(sequence=np.ones((2, 3), np.float32)), metadata(), "3 dimensions"),
        (features(length=np.array([1, 3], np.int32)), metadata(), "'length' is I32, it must be I64"),
        (features(length=np.array([0, 3])), metadata(), "row 0 has the length 0"),
        (features(length=np.array([1, 4])), metadata(), "there are 3 positions"),
        (features(length=np.array([1])), metadata(), "'length' has 1 row"),
        (features(pooled=np.ones((1, 5), np.float32)), metadata(), "'pooled' has 1 row"),
        (features(empty_sequence=np.ones((1, 3, 4), np.float32)), metadata(), "of the empty caption only"),
        (features(), {}, "has no 'names'"),
        (features(), metadata(("cat",)), "has 1 name, 'sequence' 2 rows"),
        (features(), metadata(("cat", "cat")), "row 0 and row 1"),
        (features(), metadata(("cat", " ")), "entry 1 of 'names'"),
        (features(), {"names": "cat"}, "is no JSON"),
        (features(), {"names": '"cat"'}, "is no list of texts"),
    ],
)
def test_wrong_features_are_refused(tmp_path, tensors, names, says):
    save_file(tensors, tmp_path / "f.safetensors", names)
    with pytest.raises(UsageError) as error:
        read(tmp_path / "f.safetensors")
    assert says in str(error.value)


def test_templates_take_human_readable_names():
    made = from_templates(["a photo of a {}", "{}, drawn"], ["n01443537", "golden_retriever"])
    assert made.ids == ("n01443537", "golden_retriever") and made.names == ("goldfish", "golden_retriever")
    assert made.texts == (
        "a photo of a goldfish",
        "goldfish, drawn",
        "a photo of a golden retriever",
        "golden retriever, drawn",
    )
    assert made.candidate == (0, 0, 1, 1) and made.has_several and not made.same


def test_classes_of_the_same_name_are_named():
    cranes = ["n02012849", "n03126707"]
    assert from_templates(["a {}"], cranes).same == [tuple(cranes)]


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{name}", ""])
def test_a_template_has_one_place(template):
    with pytest.raises(UsageError, match="cannot use the template"):
        from_templates([template], ["cat"])


def test_names_for_templates_are_those_of_the_images_unless_the_user_names_others(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert template_names(tmp_path / "names.txt", ["owl"], None) == ("cat", "dog")
    assert template_names(None, ["owl"], "cat,dog") == ("owl",)
    assert template_names(None, [], "cat, dog") == ("cat", "dog")
    assert len(template_names(None, [], "imagenet100")) == 100
    with pytest.raises(UsageError, match="which classes"):
        template_names(None, [], None)
