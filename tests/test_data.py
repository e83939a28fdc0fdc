"""Loading, caching, augmentation, batches. Oracles: TFDS itself, exhaustive search, formulas."""

import itertools
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds

from experiments import data
from experiments.data import augmentation, catalogue, loading, memory, prepare, prepared
from experiments.shell.errors import UserError

SPEC = catalogue.find("cifar10")._replace(num_train=30, num_test=12)
RAW = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}  # the inverse of the scaling: raw pixels come out
augment = jax.jit(data.augment, static_argnames=("mean", "std", "crop_padding", "flip"))


def random_split(seed: int, count: int, shape: tuple[int, ...]) -> prepare.Split:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, {"label": rng.integers(0, 10, count).astype(np.uint8)}


TRAIN, TEST = (random_split(seed, count, (32, 32, 3)) for seed, count in ((1, 30), (2, 12)))
NAMES = {"label": [f"class {index}" for index in range(10)]}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A small CIFAR-10 folder in TFDS's format."""
    root = tmp_path_factory.mktemp("prepared")
    prepare.write(SPEC, (TRAIN, TEST, NAMES), root)
    return root


@pytest.fixture
def root(pristine, tmp_path, monkeypatch):
    """A copy of the small folder, and a user cache, for one test alone, without network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("network"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: pytest.fail("network"))
    return Path(shutil.copytree(pristine, tmp_path / "data"))


def in_any_order(images, labels):
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def test_digits_are_all_of_scikit_learns_images_split_once_and_stratified(tmp_path):
    original = sklearn.datasets.load_digits()
    dataset = data.load("digits", data_dir=tmp_path / "nowhere")
    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    grey = np.rint(images[..., 0] / 255 * 16).astype(np.uint8)
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    assert images.max() == 255 and images.min() == 0
    expected = in_any_order(original.images.astype(np.uint8), original.target)
    assert in_any_order(grey, labels) == expected
    per_class = np.bincount(original.target)
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), -(-per_class // 5))
    assert dataset.image_shape == (8, 8, 1) and dataset.num_classes == 10
    scaled, spec = dataset.train_images / 255, catalogue.find("digits")
    assert dataset.mean == pytest.approx([scaled.mean()], abs=5e-5)
    assert dataset.std == pytest.approx([scaled.std()], abs=5e-5)
    assert (dataset.num_train, dataset.num_test) == (spec.num_train, spec.num_test)


@pytest.mark.parametrize(
    ("block", "size", "channels"), [(1, 3, 3), (2, 4, 1), (5, 1, 3), (4, 2, 3)]
)
def test_averaging_down_is_the_rounded_mean_of_blocks(block, size, channels):
    side = block * size
    images = np.random.default_rng(0).integers(0, 256, (20, side, side, channels), np.uint8)
    outputs = augmentation.resize(images, size)
    assert outputs.dtype == np.uint8 and outputs.shape == (20, size, size, channels)
    for row, column in itertools.product(range(size), repeat=2):
        rows, columns = (slice(i * block, (i + 1) * block) for i in (row, column))
        mean = images[:, rows, columns].astype(np.float64).mean((1, 2))
        np.testing.assert_array_equal(outputs[:, row, column], np.floor(mean + 0.5))


@pytest.mark.parametrize(("side", "size", "channels"), [(3, 4, 1), (4, 13, 3)])
def test_enlarging_is_linear_interpolation_between_the_centres_of_pixels(side, size, channels):
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, channels), np.uint8)
    outputs = augmentation.resize(images, size)
    assert outputs.dtype == np.uint8 and outputs.shape == (2, size, size, channels)
    centres, wanted = np.arange(side) + 0.5, (np.arange(size) + 0.5) * side / size

    def along(axis, values):
        return np.apply_along_axis(lambda line: np.interp(wanted, centres, line), axis, values)

    expected = along(2, along(1, images.astype(np.float64)))
    assert np.abs(outputs - expected).max() <= 0.5 + 1e-4


def test_a_smaller_data_set_differs_in_its_pixels_alone():
    whole, half = data.load("digits"), data.load("digits", image_size=4)
    assert half.image_shape == (4, 4, 1) and half.test_images.shape == (364, 4, 4, 1)
    np.testing.assert_array_equal(half.train_labels, whole.train_labels)
    assert same(data.load("digits", image_size=8), whole)
    larger = data.load("digits", image_size=12)
    assert larger.image_shape == (12, 12, 1) and larger.note == "interpolated to 12x12"
    padded = whole._replace(crop_padding=4)
    sizes = {16: 4, 8: 4, 4: 2, 2: 1, 1: 0}
    assert {size: memory.resized(padded, size).crop_padding for size in sizes} == sizes


def test_a_size_that_divides_nothing_is_refused():
    message = "--image-size: 3 does not divide the 8 pixels of the images. Possible: 1, 2, 4"
    with pytest.raises(UserError, match=message):
        data.load("digits", image_size=3)


def test_training_batches_are_those_of_the_key_and_the_epoch():
    dataset, key = data.load("digits"), jax.random.key(4)
    order = data.epoch_batches(jax.random.fold_in(key, 3), dataset.num_train, 100)
    batches = list(dataset.train_batches(key, 3, 100))
    assert len(batches) == dataset.num_train // 100
    for (images, labels), indices in zip(batches, order, strict=True):
        np.testing.assert_array_equal(images, dataset.train_images[indices])
        np.testing.assert_array_equal(labels, dataset.train_labels[indices])
    [(images, _)] = dataset.train_batches(key, 3, 100, start=len(batches) - 1)
    np.testing.assert_array_equal(images, batches[-1][0])


def test_test_batches_cover_the_test_set_once():
    dataset = data.load("digits")
    images, labels, is_real = map(np.concatenate, zip(*dataset.test_batches(50), strict=True))
    assert len(labels) == 400
    np.testing.assert_array_equal(images[is_real], dataset.test_images)
    np.testing.assert_array_equal(labels[is_real], dataset.test_labels)


# -- Prepared folders ----------------------------------------------------------------------------


def test_loading_gives_back_every_image_and_label_in_tfdss_order(root):
    dataset = loading.load_arrays(SPEC, root)
    assert not hasattr(sys.modules.get("tensorflow"), "__version__")
    for split, images, labels in (
        (TRAIN, dataset.train_images, dataset.train_labels),
        (TEST, dataset.test_images, dataset.test_labels),
    ):
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        assert in_any_order(images, labels) == in_any_order(split[0], split[1]["label"])
    assert dataset.class_names == tuple(NAMES["label"])
    assert dataset.note == ""
    assert dataset.source.startswith("TFDS cifar10 3.0.2, SHA-256 ")
    assert (dataset.mean, dataset.std) == (SPEC.mean, SPEC.std)
    records = list(tfds.data_source("cifar10:3.0.2", split="test", data_dir=root, download=False))
    np.testing.assert_array_equal(dataset.test_images, [record["image"] for record in records])
    np.testing.assert_array_equal(dataset.test_labels, [record["label"] for record in records])


def test_jpeg_images_are_noted(tmp_path, monkeypatch):
    from PIL import Image

    def encode_jpeg(image):
        path = tmp_path / "image.jpg"
        Image.fromarray(image).save(path)
        return path.read_bytes()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    monkeypatch.setattr(prepare, "_encode", encode_jpeg)
    prepare.write(SPEC, (TRAIN, TEST, NAMES), tmp_path)
    for _ in ("decoded", "from the cache"):
        dataset = loading.load_arrays(SPEC, tmp_path)
        assert dataset.note == "images stored as JPEG: not the original lossless pixels"


def test_where_prepared_data_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "variable"))
    assert prepared.data_root(tmp_path / "argument") == tmp_path / "argument"
    assert prepared.data_root(None) == tmp_path / "variable"
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepared.data_root(None) == tmp_path / "tensorflow_datasets"
    assert prepared.data_root("~/x") == tmp_path / "x"


TEST_SHARD = "cifar10-test.array_record-00000-of-00001"


def set_format(folder: Path, name: str) -> None:
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": name}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f.parents[1]), r"cifar10 is not prepared in .*looked for"),
        (lambda f: f.rename(f.with_name("3.0.1")), r"looked for .*3\.0\.2, there is 3\.0\.1"),
        (lambda f: (f / "dataset_info.json").unlink(), r"no dataset_info\.json"),
    ],
)
def test_a_missing_folder_is_said_before_tfds_is_imported(damage, message, root, monkeypatch):
    damage(root / "cifar10" / "3.0.2")
    monkeypatch.setattr(prepared, "import_tfds", lambda: pytest.fail("TFDS called"))
    with pytest.raises(data.DataError, match=message) as caught:
        loading.load_arrays(SPEC, root)
    text = str(caught.value)
    assert "\n" not in text and "TFDS_DATA_DIR" in text
    assert f"python -m experiments.data prepare cifar10 --data-dir {root}" in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "dataset_info.json").write_text("{"), "cannot open the train records"),
        (lambda f: set_format(f, "tfrecord"), "records .*array_record"),
        (lambda f: cut(f / TEST_SHARD), "test records are truncated or damaged"),
        (lambda f: scribble(f / TEST_SHARD), "test records are truncated or damaged"),
    ],
)
def test_a_damaged_folder_is_one_clear_error_without_network(damage, message, root):
    folder = root / "cifar10" / "3.0.2"
    damage(folder)
    with pytest.raises(data.DataError, match=message) as caught:
        loading.load_arrays(SPEC, root)
    text = str(caught.value)
    assert "\n" not in text and str(folder) in text and len(text) < 1000


def test_a_folder_of_another_size_is_no_official_data_set(root):
    with pytest.raises(data.DataError, match="has 30 train images, not 50000"):
        data.load("cifar10", data_dir=root)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def scribble(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(20_000)
        file.write(b"scribble" * 10)


def same(first: data.Dataset, second: data.Dataset) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_other_records_are_other_images(root):
    before = loading.load_arrays(SPEC, root)
    (root / "cifar10" / "3.0.2" / ".DS_Store").write_text("")
    assert loading.load_arrays(SPEC, root).source == before.source
    shutil.rmtree(root / "cifar10" / "3.0.2")
    other = random_split(3, SPEC.num_test, SPEC.image_shape)
    prepare.write(SPEC, (TRAIN, other, NAMES), root)
    dataset = loading.load_arrays(SPEC, root)
    found = in_any_order(dataset.test_images, dataset.test_labels)
    assert found == in_any_order(other[0], other[1]["label"])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip_a_bit])
def test_images_are_decoded_once_and_again_if_the_cache_is_damaged(
    damage, root, tmp_path, caplog, monkeypatch
):
    before = sorted(root.rglob("*"))
    first = loading.load_arrays(SPEC, root)
    assert sorted(root.rglob("*")) == before
    [path] = (tmp_path / "user-cache").rglob("*.safetensors")
    damage(path)
    assert same(loading.load_arrays(SPEC, root), first)
    assert f"cannot use {path}" in caplog.text and "reading the data set again" in caplog.text

    caplog.clear()
    monkeypatch.setattr(loading, "_decode", lambda *args: pytest.fail("decoded again"))
    assert same(loading.load_arrays(SPEC, root), first)
    assert not caplog.text


def test_without_any_place_for_a_cache_the_images_still_come(root, tmp_path, caplog):
    (tmp_path / "user-cache").write_text("no folder")
    assert len(loading.load_arrays(SPEC, root).train_images) == 30
    assert "the next run decodes again" in caplog.text


# -- Augmentation --------------------------------------------------------------------------------


def crops_of(image: np.ndarray, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every crop of the padded image and its mirror image, by content."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    corners = list(itertools.product(range(2 * padding + 1), repeat=2))
    found = {}
    for mirrored in (False, True):
        for top, left in corners:
            crop = padded[top : top + height, left : left + width, :][:, :: -1 if mirrored else 1]
            # A crop that is its own mirror image, as one of zeros alone, counts as not mirrored.
            found.setdefault(crop.tobytes(), (top, left, mirrored))
    return found


def raw_pixels(outputs: jax.Array) -> np.ndarray:
    rounded = np.rint(np.asarray(outputs))
    np.testing.assert_allclose(outputs, rounded, atol=1e-3)
    return rounded.astype(np.uint8)


@pytest.mark.parametrize(("padding", "flip"), [(1, True), (4, False)])
def test_every_output_is_a_crop_of_its_padded_image(padding, flip):
    images = np.random.default_rng(0).integers(1, 256, (40, 3, 5, 3), dtype=np.uint8)
    outputs = raw_pixels(augment(jax.random.key(0), images, crop_padding=padding, flip=flip, **RAW))
    for image, output in zip(images, outputs, strict=True):
        _, _, mirrored = crops_of(image, padding)[output.tobytes()]
        assert flip or not mirrored


def test_shifts_are_uniform_flips_even_and_examples_independent():
    count, padding = 8100, 1
    image = np.random.default_rng(0).integers(1, 256, (4, 4, 1), dtype=np.uint8)
    outputs = raw_pixels(
        augment(
            jax.random.key(0),
            np.broadcast_to(image, (count, 4, 4, 1)),
            mean=(0.0,),
            std=(1 / 255,),
            crop_padding=padding,
        )
    )
    table = crops_of(image, padding)
    seen = [table[output.tobytes()] for output in outputs]
    counts = np.array([seen.count(kind) for kind in table.values()])
    expected = count / 18
    # Chi-square with 17 degrees of freedom exceeds 40.8 once in a thousand keys; the key is fixed.
    assert ((counts - expected) ** 2 / expected).sum() < 40.8
    # Neighbours in the batch agree as often as chance says: 450 times, standard deviation 21.
    agree = sum(first == second for first, second in zip(seen, seen[1:], strict=False))
    assert abs(agree - expected) < 85


def test_augmentation_depends_on_the_key_alone():
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    first, again, other = (augment(jax.random.key(seed), images, **RAW) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other) and first.dtype == jnp.float32


def test_the_border_is_a_black_pixel_not_a_grey_one():
    images = np.full((64, 4, 4, 3), 255, np.uint8)
    outputs = augment(jax.random.key(0), images, mean=SPEC.mean, std=SPEC.std, crop_padding=4)
    mean, std = np.float32(SPEC.mean), np.float32(SPEC.std)
    values = np.unique(np.asarray(outputs).reshape(-1, 3), axis=0)
    np.testing.assert_allclose(values, [-mean / std, (1 - mean) / std], rtol=1e-5)


def test_normalise_is_its_formula():
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 2), dtype=np.uint8)
    constants = {"mean": (0.25, 0.5), "std": (0.2, 0.4)}
    expected = (images.astype(np.float64) / 255 - constants["mean"]) / constants["std"]
    unchanged = augment(jax.random.key(0), images, crop_padding=0, flip=False, **constants)
    for outputs in (data.normalise(images, **constants), unchanged):
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_pixels_that_are_scaled_already_are_refused():
    with pytest.raises(ValueError, match="images: expected raw pixels, uint8 .* got float32"):
        data.normalise(np.zeros((2, 4, 4, 3), np.float32), **RAW)


@pytest.mark.parametrize("batch_size", [1, 10, 57])
def test_an_epoch_is_full_batches_without_repetition(batch_size):
    batches = data.epoch_batches(jax.random.key(0), 57, batch_size)
    assert batches.shape == (57 // batch_size, batch_size) and batches.dtype == np.int32
    assert len(np.unique(batches)) == batches.size
    assert batches.min() >= 0 and batches.max() < 57


def test_the_order_is_that_of_the_key():
    first, again, other = (
        data.epoch_batches(jax.random.key(seed), 1000, 100) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    # Two random orders agree in one place on average.
    assert np.count_nonzero(first == other) < 10
    assert np.count_nonzero(first == np.arange(1000).reshape(10, 100)) < 10


@pytest.mark.parametrize(("num_examples", "batch_size"), [(1, 1), (12, 4), (13, 4), (3, 64)])
def test_evaluation_covers_every_example_once(num_examples, batch_size):
    indices, is_real = data.eval_batches(num_examples, batch_size)
    assert indices.shape == is_real.shape == (-(-num_examples // batch_size), batch_size)
    np.testing.assert_array_equal(indices[is_real], np.arange(num_examples))
    assert not indices[~is_real].any()


def test_a_batch_size_that_gives_no_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size: expected 1 to 10 images, got 11"):
        data.epoch_batches(jax.random.key(0), 10, 11)


@pytest.mark.parametrize("name", [name for name in catalogue.SPECS if name != "digits"])
def test_the_real_data_set(name):
    spec = catalogue.find(name)
    folder = prepared.folder(spec, prepared.data_root(None))
    if not prepared.is_there(folder):
        pytest.skip(f"{name} is not prepared in TFDS_DATA_DIR")
    images, labels, num_jpeg = prepared.read_split(spec, folder, "test")
    assert images.shape == (10_000, *spec.image_shape)
    assert set(np.bincount(labels)) == {10_000 // spec.num_classes}
    assert num_jpeg in (0, 10_000)
    # The constants are those of the training split, or of its images one by one.
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, spec.mean, atol=0.01)
    class_names = prepared.label_names(spec, folder)
    assert len(class_names) == spec.num_classes and not any(map(str.isdigit, class_names))
