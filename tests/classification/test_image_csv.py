"""Tables of names and labels in the dialects that people have."""

from itertools import chain
from pathlib import Path

import pytest
from PIL import Image

from attention_vision.classification import ImageCSV
from attention_vision.data.splits import SplitShares
from attention_vision.errors import InputError
from attention_vision.training.labels import Labels


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(root / name)
    return root


def csv_data(root: Path, text: str | bytes, **more: object) -> ImageCSV:
    content = text.encode() if isinstance(text, str) else text
    (root / "labels.csv").write_bytes(content)
    return ImageCSV(str(root / "labels.csv"), image_size=8, num_workers=0, **more)


def read(data: ImageCSV, split: str = "train") -> dict[str, str]:
    """Path below the root -> name of its class, as the network learns it."""
    source = data.source(split)
    data.setup({"train": "fit", "val": "validate", "test": "test"}[split])
    dataset = getattr(data, f"{split}_images")
    return {
        Path(path).relative_to(data.root).as_posix(): data.class_names[dataset[index][1]]
        for index, (path, _) in enumerate(source.files)
    }


PAIRS = {"a.png": "cat", "b.png": "dog", "deep/c.png": "cat"}


@pytest.mark.parametrize(
    "text",
    [
        "id,breed\na,cat\nb,dog\nc,cat\n",
        "filename;label\r\na.png;cat\r\nb.png;dog\r\nc.png;cat\r\n",
        "\ufeffimage\tclass\na.png\tcat\nb.png\tdog\ndeep/c.png\tcat\n",
        "a.png,cat\nb.png,dog\nc.png,cat\n",
        "a.png cat\nb.png dog\ndeep/c.png cat\n",
        'label,path\ncat,"/data/of/others/a.png"\ndog,C:\\x\\b.png\ncat,x/deep/c\n',
        "lesion,image_id,dx,label\n1,a,z,cat\n2,b,z,dog\n\n3,c,z,cat\n",
        "image,cat,dog\na,1,0\nb,0,1\nc,1,0\n",
        "image,cat,dog\na,1.0,0.0\nb,0.0,1.0\nc,1.0,0.0\n",
    ],
    ids=[
        "kaggle", "semicolons", "tabs and BOM", "no header", "spaces", "other machines",
        "more columns", "one column per class", "fractions",
    ],
)  # fmt: skip
def test_dialects(tmp_path: Path, text: str) -> None:
    data = csv_data(images(tmp_path, *PAIRS), text, split=SplitShares(val=0.2))
    assert data.class_names == ("cat", "dog")
    found = {**read(data), **read(data, "val")}
    assert found == PAIRS


def test_a_header_is_one_though_an_image_has_its_name(tmp_path: Path) -> None:
    data = csv_data(images(tmp_path, "image.png", "a.png"), "image,label\nimage,cat\na,dog\n")
    assert data.class_names == ("cat", "dog")
    assert [row.file for row in data.rows("train")] == ["image", "a"]


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "Datei;label\na.png;Käfer\nb.png;Mücke\n".encode(encoding)
    data = csv_data(images(tmp_path, "a.png", "b.png"), text)
    assert data.class_names == ("Käfer", "Mücke")


def test_columns_are_named_where_they_are_not_found(tmp_path: Path) -> None:
    root = images(tmp_path, "a.png", "b.png", "c.png")
    text = "photo,age,kind,sex\na,3,cat,f\nb,4,dog,m\nc,5,dog,m\n"
    with pytest.raises(InputError, match=r"Set data.label_column to one of age, kind, sex"):
        _ = csv_data(root, text).class_names
    assert csv_data(root, text, label_column="kind").class_names == ("cat", "dog")
    assert csv_data(root, text, label_column="3").class_names == ("f", "m")
    with pytest.raises(InputError, match=r"data.file_column x: .* it has photo, age, kind, sex"):
        _ = csv_data(root, text, file_column="x").class_names
    with pytest.raises(InputError, match=r"every row has a label of its own, such as 3"):
        _ = csv_data(root, text, label_column="age").class_names


def test_numbers_are_classes_by_their_value(tmp_path: Path) -> None:
    root = images(tmp_path, *(f"{n}.png" for n in range(1, 5)))
    data = csv_data(root, "id,label\n1,10.0\n2,2.0\n3,10.0\n4,\n")
    assert data.class_names == ("2", "10")
    data.source("train")
    assert data.findings["train"].left_out["rows without a label"] == ["4"]


def test_a_column_divides_the_images(tmp_path: Path) -> None:
    root = images(tmp_path, *(f"{n}.png" for n in range(6)))
    text = (
        "file,label,split\n0,a,train\n1,b,Train\n2,a,valid\n3,b,test\n4,b,validation\n5,a,train\n"
    )
    data = csv_data(root, text)
    assert read(data) == {"0.png": "a", "1.png": "b", "5.png": "a"}
    assert read(data, "val") == {"2.png": "a", "4.png": "b"}
    assert read(data, "test") == {"3.png": "b"}
    held = csv_data(root, text, split=SplitShares(0.2))
    with pytest.raises(InputError, match=r"there is val in column split of .*holds out 0.2"):
        held.setup("validate")


def test_a_table_for_each_split(tmp_path: Path) -> None:
    root = images(tmp_path, "train/0.png", "train/1.png", "valid/0.png", "testing/0.png")
    (root / "val.csv").write_text("id,label\nvalid/0,b\n")
    (root / "test.csv").write_text("id,label\ntesting/0.png,c\n")
    tables = {"val_csv": "val.csv", "test_csv": str(root / "test.csv")}
    data = csv_data(root, "id,label\ntrain/0,a\ntrain/1.png,b\n", **tables)
    assert read(data) == {"train/0.png": "a", "train/1.png": "b"}
    assert read(data, "val") == {"valid/0.png": "b"}
    with pytest.raises(InputError, match=r"ImageCSV: train has no class c"):
        data.setup("test")


def test_folders_of_splits_tell_images_of_one_name_apart(tmp_path: Path) -> None:
    root = images(tmp_path, "train/0.png", "train/1.png", "Test/0.png", "Test/1.png")
    (root / "test.csv").write_text("id,label\n0,b\n")
    data = csv_data(root, "id,label\n0,a\n1,b\n", test_csv=str(root / "test.csv"))
    paths = [str(root / "train" / f"{number}.png") for number in (0, 1)]
    assert data.source("train").files == [(paths[0], 0), (paths[1], 1)]
    assert read(data, "test") == {"Test/0.png": "b"}
    data = csv_data(root, "id,label,split\n0,a,train\n1,b,train\n1,a,test\n")
    assert read(data, "test") == {"Test/1.png": "a"}


def test_a_division_follows_from_the_names(tmp_path: Path) -> None:
    root = images(tmp_path, *(f"{n}.png" for n in range(20)))
    rows = [f"{n},{'ab'[n % 2]}" for n in range(20)]
    data = csv_data(root, "\n".join(["id,label", *rows]), split=SplitShares(0.2, 0.1))
    parts = [read(data, split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [14, 4, 2]
    assert sorted(chain(*parts)) == sorted(f"{n}.png" for n in range(20))
    other = csv_data(root, "\n".join(["id,label", *rows[::-1]]), split=SplitShares(0.2, 0.1))
    assert read(other, "val") == parts[1]


def test_labels_of_trained_weights_are_kept(tmp_path: Path) -> None:
    data = csv_data(images(tmp_path, "a.png", "b.png"), "id,label\na,fox\nb,cat\n")
    data.tables["val"] = "labels.csv"
    data.use_labels(Labels(("emu", "cat", "fox")))
    assert read(data, "val") == {"a.png": "fox", "b.png": "cat"}
    data.use_labels(Labels(("emu", "cat")))
    with pytest.raises(InputError, match=r"ImageCSV: fox is not among the 2 classes"):
        data.setup("validate")


def missing_table(root: Path) -> None:
    _ = ImageCSV("nowhere.csv", str(root)).class_names


def missing_root(root: Path) -> None:
    (root / "labels.csv").write_text("id,label\na,cat\n")
    _ = ImageCSV(str(root / "labels.csv"), str(root / "nowhere")).class_names


def other_folder(root: Path) -> None:
    _ = csv_data(root, "id,label\nx,cat\ny,dog\n").class_names


def missing_image(root: Path) -> None:
    csv_data(root, "id,label\na,cat\nb,dog\nz,dog\n").source("train")


def two_labels(root: Path) -> None:
    csv_data(root, "id,label\na,cat\nb,dog\na.png,dog\n").source("train")


def two_images(root: Path) -> None:
    images(root, "more/a.png")
    csv_data(root, "id,label\na,cat\nb,dog\n").source("train")


def no_validation(root: Path) -> None:
    csv_data(root, "id,label\na,cat\nb,dog\n").setup("validate")


def one_column(root: Path) -> None:
    _ = csv_data(root, "id\na\nb\n").class_names


def unknown_split(root: Path) -> None:
    text = "id,label,fold\na,cat,train\nb,dog,3\n"
    csv_data(root, text, split_column="fold").source("train")


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (missing_table, r"no file nowhere.csv: set data.csv to a CSV of names and labels"),
        (missing_root, r"no folder .*nowhere: set data.root"),
        (other_folder, r"none of its first 2 rows names an image below data.root, such as x"),
        (missing_image, r"labels.csv, line 4: no image z below .*; 1 of 3 rows have none"),
        (two_labels, r"labels.csv, line 4: a.png is dog here and cat in a line above"),
        (two_images, r"a may be .*less/a.png or .*more/a.png: give the names with their folders"),
        (
            no_validation,
            r"no column split: hold out .*data.split: {val: 0.2}, or give data.val_csv",
        ),
        (one_column, r"labels.csv has one column: a label for each image is missing"),
        (unknown_split, r"line 3: the split '3' is none of train, training, val"),
    ],
)
def test_bad_tables_are_one_clear_line(tmp_path: Path, bad, line: str) -> None:
    images(tmp_path, "a.png" if bad is not two_images else "less/a.png", "b.png")
    with pytest.raises(InputError, match=line) as caught:
        bad(tmp_path)
    assert "\n" not in str(caught.value)


def test_rows_without_an_image_are_skipped_on_request(tmp_path: Path) -> None:
    root = images(tmp_path, "a.png", "b.png", "c.png")
    (root / "c.png").write_bytes(b"no picture")
    text = "id,label\na,cat\nb,dog\nz,dog\nc,cat\nb,dog\n"
    data = csv_data(root, text, on_bad_image="skip")
    assert len(data.source("train")) == 2
    findings = data.findings["train"]
    assert findings.left_out["rows without an image"] == ["z"]
    assert list(findings.broken) == [str(root / "c.png")]
    assert findings.repaired == [f"{root / 'labels.csv'}: 1 rows repeat an image with its label"]
