from pathlib import Path

import pytest
from coco_folder import dataset, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        save(tmp_path, split, dataset(tmp_path, split))
    return tmp_path
