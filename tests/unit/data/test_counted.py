import pytest
from PIL import Image

from locallearn.config import DataConfig
from locallearn.data.counted import training_images
from locallearn.data.packing import pack
from locallearn.errors import DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Eight training images, one of them in a folder of its own, and two for testing."""
    root = tmp_path_factory.mktemp("images")
    for name in ("ant", "bee"):
        for i in range(5):
            part = "train" if i < 4 else "test"
            folder = root / part / name / ("more" if i == 0 else "")
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    return root


@pytest.mark.parametrize(("settings", "count"), [({}, 8), ({"validation": 0.25}, 6), ({"train_limit": 4}, 4)])
def test_a_folder_of_images(root, settings, count):
    assert training_images(DataConfig("folder", root=str(root), **settings)) == count


def test_a_packed_set(root, tmp_path):
    pack(root, tmp_path / "packed")
    assert training_images(DataConfig("packed", root=str(tmp_path / "packed"))) == 8


def test_sets_by_name_have_their_recipes():
    assert training_images(DataConfig("cifar10")) is None


@pytest.mark.parametrize("name", ["folder", "packed"])
def test_a_folder_that_is_not_there(name, tmp_path):
    with pytest.raises(DataError, match=r"\(data\.root\) is no"):
        training_images(DataConfig(name, root=str(tmp_path / "nowhere")))
