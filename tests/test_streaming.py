"""Image files: crops, folders, and batches made by processes. Oracles: geometry, NumPy, Pillow."""

import dataclasses
import io
import json
import multiprocessing
import shutil
from pathlib import Path

import cloudpickle
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments import data
from experiments.cifar import program as cifar
from experiments.data import catalogue, crops
from experiments.data.crops import CentreCrop, RandomCrop
from experiments.data.streaming import StreamedDataset
from experiments.tpp import program as tpp

CLASSES = ("n03", "n01", "n02")  # As in wnids.txt: not sorted.
NUM_TRAIN, NUM_TEST = 14, 5
STEP = 18  # Between the levels of red that tell images apart after any crop.


def picture(number: int, *, size=(64, 64), mode="RGB") -> Image.Image:
    """Red is the image's number; green rises from left to right."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = number * STEP
    pixels[..., 1] = np.linspace(0, 250, width)
    return Image.fromarray(pixels).convert(mode)


def write(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(image, "JPEG", quality=95))


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def numbers(images: np.ndarray) -> list[int]:
    return np.rint(images[..., 0].mean((1, 2)) / STEP).astype(int).tolist()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A small data set in Tiny-ImageNet's layout: image i is of class i % 3."""
    root = tmp_path_factory.mktemp("images")
    folder = root / "tiny-imagenet-200"
    for number in range(NUM_TRAIN):
        wnid = CLASSES[number % 3]
        write(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", picture(number))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("ignored")
    lines = []
    for number in range(NUM_TEST):
        write(folder / "val" / "images" / f"val_{number}.JPEG", picture(number))
        lines.append(f"val_{number}.JPEG\t{CLASSES[number % 3]}\t0\t0\t9\t9")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (folder / "wnids.txt").write_text("\n".join(CLASSES) + "\n")
    (folder / "words.txt").write_text("n01\tgoldfish\nn02\tcat, true cat\nn03\tbus\nn04\tpot\n")
    return root


@pytest.fixture
def root(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "data"))


def load(root: Path, **options) -> StreamedDataset:
    return data.load("tiny_imagenet", data_dir=root, **options)


# -- Crops ---------------------------------------------------------------------------------------


def test_area_ratio_and_place_of_crops_are_uniform_within_their_limits():
    rng = np.random.default_rng(0)
    boxes = np.array(
        [crops.crop_box(rng, 1000, 1000, scale=(0.1, 0.5), ratio=(0.5, 2.0)) for _ in range(4000)]
    )
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    uniforms = {
        "area": (width * height / 1e6 - 0.1) / 0.4,
        "ratio": (np.log2(width / height) + 1) / 2,
        "left": boxes[:, 0] / (1000 - width),
        "top": boxes[:, 1] / (1000 - height),
    }
    for name, values in uniforms.items():
        quarters, _ = np.histogram(values, [-0.01, 0.25, 0.5, 0.75, 1.01])
        # Each is 1000 on average, with standard deviation 27; together they are all.
        assert abs(quarters - 1000).max() < 110 and quarters.sum() == len(boxes), name


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 10), (43, 0, 56, 10)), ((10, 100), (0, 43, 10, 56)), ((10, 10), (0, 0, 10, 10))],
)
def test_where_no_crop_fits_it_is_the_largest_in_the_centre(size, expected):
    # The whole area with ratio 4/3 or 3/4 is in none of these images; a rounded 10x10 fits.
    limits = {"scale": (1.0, 1.0), "ratio": (3 / 4, 4 / 3)}
    boxes = {crops.crop_box(np.random.default_rng(i), *size, **limits) for i in range(5)}
    assert boxes == {expected}


def test_a_random_crop_is_flipped_half_the_time_and_depends_on_the_generator_alone():
    encoded = encode(picture(3), "PNG")
    whole = np.asarray(picture(3))
    crop = RandomCrop(64, (1.0, 1.0), (1.0, 1.0))
    outputs = [crop(encoded, np.random.default_rng(seed)) for seed in range(200)]
    flipped = [np.array_equal(output, whole[:, ::-1]) for output in outputs]
    assert all(np.array_equal(o, whole) for o, f in zip(outputs, flipped, strict=True) if not f)
    assert 60 < sum(flipped) < 140  # Standard deviation 7.

    crop = RandomCrop(24, (0.1, 1.0), (0.8, 1.25))
    first, again, other = (crop(encoded, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.shape == (24, 24, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_centre_crop_is_the_centre_of_the_resized_image():
    image = picture(2, size=(300, 200))
    resized = np.asarray(image.resize((384, 256), Image.Resampling.BILINEAR))
    output = CentreCrop(224, 256)(encode(image, "PNG"))
    np.testing.assert_array_equal(output, resized[16:240, 80:304])
    tiny = picture(2)
    np.testing.assert_array_equal(CentreCrop(64, 64)(encode(tiny, "PNG")), np.asarray(tiny))


@pytest.mark.parametrize(("mode", "file_format"), [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG")])
def test_other_colour_spaces_become_rgb(mode, file_format):
    encoded = encode(Image.new("L", (8, 8), 180).convert(mode), file_format)
    pixels = np.asarray(crops.decode(encoded))
    assert pixels.shape == (8, 8, 3)
    np.testing.assert_allclose(pixels, 180, atol=2)


# -- Folders -------------------------------------------------------------------------------------


def test_tiny_imagenet_is_read_in_its_own_layout(pristine):
    dataset = load(pristine)
    assert dataset.class_names == ("bus", "goldfish", "cat, true cat")
    assert (dataset.num_train, dataset.num_test) == (NUM_TRAIN, NUM_TEST)
    assert dataset.image_shape == (64, 64, 3) and dataset.num_classes == 3
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), [5, 5, 4])
    images = dataset.train_images_at(np.arange(NUM_TRAIN))
    assert sorted(numbers(images)) == list(range(NUM_TRAIN))
    np.testing.assert_array_equal(np.array(numbers(images)) % 3, dataset.train_labels)
    assert dataset.source.startswith("image files, SHA-256 of their names and labels ")


def test_imagenet_is_a_folder_a_class(tmp_path):
    for split, count in (("train", 3), ("val", 1)):
        for label, wnid in enumerate(("n01", "n02")):
            for number in range(count):
                image = picture(5 * label + number, size=(40 + 9 * number, 60))
                write(tmp_path / "imagenet" / split / wnid / f"{number}.JPEG", image)
    dataset = data.load("imagenet", data_dir=tmp_path)
    assert dataset.class_names == ("n01", "n02")
    assert dataset.train_crop == RandomCrop(224, (0.08, 1.0), (3 / 4, 4 / 3))
    assert dataset.test_crop == CentreCrop(224, 256)

    dataset = data.load("imagenet", data_dir=tmp_path, image_size=28)
    assert dataset.test_crop == CentreCrop(28, 32)
    images, labels = next(dataset.train_batches(jax.random.key(0), 1, 6))
    assert images.shape == (6, 28, 28, 3)
    found = sorted(zip(labels.tolist(), numbers(images), strict=True))
    assert found == [(0, 0), (0, 1), (0, 2), (1, 5), (1, 6), (1, 7)]


@pytest.fixture
def prepared_imagenet(tmp_path, monkeypatch):
    """ImageNet as TFDS prepares it, with six training and three validation images."""

    def examples(numbers):
        for number in numbers:
            image = encode(picture(number, size=(50 + number, 70)), "JPEG")
            yield number, {"image": image, "label": number, "file_name": f"{number}.JPEG"}

    class Builder(tfds.builder_cls("imagenet2012"), skip_registration=True):
        name = "imagenet2012"

        def _split_generators(self, dl_manager):
            return {"train": examples(range(6)), "validation": examples(range(3))}

    tfds.disable_progress_bar()
    Builder(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    spec = catalogue.IMAGENET_RECORDS._replace(num_train=6, num_test=3)
    monkeypatch.setattr(catalogue, "IMAGENET_RECORDS", spec)
    return tmp_path


def test_imagenet_is_read_from_a_folder_of_tfds(prepared_imagenet):
    dataset = data.load("imagenet", data_dir=prepared_imagenet, image_size=32)
    assert dataset.num_classes == 1000 and dataset.class_names[0] == "n01440764"
    assert (dataset.num_train, dataset.num_test) == (6, 3)
    assert sorted(dataset.train_labels) == list(range(6))
    np.testing.assert_array_equal(
        dataset.train_labels, numbers(dataset.train_images_at(np.arange(6)))
    )
    # Processes get a copy.
    copy = cloudpickle.loads(cloudpickle.dumps(dataset.train))
    assert [copy[i] for i in range(6)] == [dataset.train[i] for i in range(6)]
    [(images, labels, is_real)] = dataset.test_batches(4)
    assert numbers(images[is_real]) == labels[is_real].tolist() and is_real.sum() == 3


def test_an_incomplete_folder_of_tfds_is_refused(prepared_imagenet):
    path = prepared_imagenet / "imagenet2012" / "5.1.0" / "dataset_info.json"
    path.write_text(path.read_text().replace('"validation"', '"other"'))
    with pytest.raises(data.DataError, match="cannot open the validation records"):
        data.load("imagenet", data_dir=prepared_imagenet)
    path.unlink()
    with pytest.raises(data.DataError, match="no dataset_info.json. Prepare imagenet2012 by TFDS"):
        data.load("imagenet", data_dir=prepared_imagenet)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"tiny-imagenet-200 is not there. Unpack .*TFDS_DATA_DIR"),
        (lambda f: (f / "wnids.txt").write_text(""), r"wnids.txt is empty"),
        (lambda f: shutil.rmtree(f / "train" / "n01"), r"No such file or directory: .*n01/images"),
        (
            lambda f: [path.unlink() for path in (f / "train/n01/images").iterdir()],
            r"train/n01/images holds no image \(.jpeg",
        ),
        (lambda f: (f / "train" / "n04").mkdir(), "train/n04 is the folder of an unknown class"),
        (
            lambda f: (f / "val/val_annotations.txt").write_text("val_0.JPEG\tn04"),
            r"val_annotations.txt, line 1: 'n04' is none of the 3 classes in wnids.txt",
        ),
        (lambda f: (f / "val/images/val_3.JPEG").unlink(), "line 4: there is no val_3.JPEG"),
    ],
)
def test_a_damaged_folder_is_one_line_that_says_what_to_do(damage, message, root):
    damage(root / "tiny-imagenet-200")
    with pytest.raises(data.DataError, match=message) as caught:
        load(root)
    text = str(caught.value)
    assert "\n" not in text and str(root) in text and "npack" in text


@pytest.mark.parametrize("content", [b"no image", encode(picture(1), "JPEG")[:600]])
def test_a_file_that_is_no_image_is_named(content, root):
    path = root / "tiny-imagenet-200" / "val" / "images" / "val_1.JPEG"
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=f"{path}: no image, or a damaged one") as caught:
        list(load(root).test_batches(5))
    assert "\n" not in str(caught.value)


# -- Batches -------------------------------------------------------------------------------------


def collect(dataset: StreamedDataset, *epochs: int, seed: int = 0) -> list[tuple[np.ndarray, ...]]:
    key = jax.random.key(seed)
    return [batch for epoch in epochs for batch in dataset.train_batches(key, epoch, 4)]


def same(first, second) -> bool:
    return all(
        np.array_equal(a, b)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_an_epoch_is_full_batches_without_repetition_and_with_the_right_labels(pristine):
    batches = collect(load(pristine), 1)
    assert [images.shape for images, _ in batches] == [(4, 64, 64, 3)] * (NUM_TRAIN // 4)
    images, labels = map(np.concatenate, zip(*batches, strict=True))
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    found = numbers(images)
    assert len(set(found)) == len(found)
    np.testing.assert_array_equal(np.array(found) % 3, labels)


def test_order_and_crops_depend_on_key_and_epoch_alone(pristine):
    dataset = load(pristine)
    undisturbed = collect(dataset, 1, 2)
    assert same(collect(load(pristine), 2), undisturbed[3:])  # Resumed after the first epoch.
    rest = list(dataset.train_batches(jax.random.key(0), 2, 4, start=1))
    assert same(rest, undisturbed[4:])  # Resumed within an epoch.
    next(dataset.train_batches(jax.random.key(0), 7, 4))  # Given up.
    assert same(collect(dataset, 1), undisturbed[:3])
    orders = [
        sum((numbers(images) for images, _ in batches), [])
        for batches in (undisturbed[:3], undisturbed[3:], collect(dataset, 1, seed=1))
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2]


def test_evaluation_covers_every_image_once(pristine):
    dataset = load(pristine)
    for _ in range(2):
        batches = list(dataset.test_batches(3))
        assert [is_real.tolist() for _, _, is_real in batches] == [[True] * 3, [True, True, False]]
        images, labels, is_real = map(np.concatenate, zip(*batches, strict=True))
        assert numbers(images[is_real]) == list(range(NUM_TEST))
        np.testing.assert_array_equal(labels[is_real], np.arange(NUM_TEST) % 3)
        pixels = np.asarray(Image.open(dataset.test.where(1)))
        np.testing.assert_array_equal(images[1], pixels)


@pytest.mark.long
def test_processes_give_the_same_batches_and_go_on_to_the_next_epoch(pristine, capfd):
    alone, dataset = load(pristine), load(pristine, num_workers=2)
    first = collect(dataset, 1)
    processes = multiprocessing.active_children()
    assert len(processes) == 2
    assert same(first + collect(dataset, 2), collect(alone, 1, 2))
    assert multiprocessing.active_children() == processes
    assert capfd.readouterr() == ("", "")

    key = jax.random.key(0)
    for process in processes:
        process.kill()
    with pytest.raises(data.DataError, match="cannot read the images: Worker process was termi"):
        for epoch in range(3, 9):  # What was read ahead comes first.
            list(dataset.train_batches(key, epoch, 4))
    assert not multiprocessing.active_children()


@pytest.mark.long
def test_processes_start_no_device(pristine, capfd):
    class Reporting:  # Defined here, so that a process gets it without this module.
        def __len__(self):
            return 2

        def __getitem__(self, index):
            from jax._src import xla_bridge

            started = xla_bridge.backends_are_initialized()
            raise OSError(f"devices {started}")

    dataset = dataclasses.replace(load(pristine, num_workers=1), test=Reporting())
    with pytest.raises(data.DataError, match="cannot read the images: devices False"):
        list(dataset.test_batches(2))
    assert capfd.readouterr() == ("", "")


# -- The program ---------------------------------------------------------------------------------


@pytest.mark.long
def test_the_program_prunes_and_trains_on_image_files(root, tmp_path, capsys):
    options = [
        *("paper-tiny", "--data-dir", str(root), "--data-workers", "0", "--image-size", "8"),
        *("--model", "mlp", "--epochs", "1", "--batch-size", "8"),
        *("--runs-dir", str(tmp_path / "runs")),
    ]
    cifar.main([*options, "--criterion", "random"])
    output = " ".join(capsys.readouterr().out.split())
    assert "14 training and 5 test images of 8x8x3, 3 classes" in output
    [path] = (tmp_path / "runs").rglob("summary.json")
    assert json.loads(path.read_text())["dataset_source"].startswith("image files")

    path = root / "tiny-imagenet-200" / "val" / "images" / "val_1.JPEG"
    path.write_bytes(b"no image")
    with pytest.raises(SystemExit) as stop:
        # With another training the process does not use the data that it read before.
        cifar.main([*options, "--criterion", "dense", "--learning-rate", "0.1"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"error: cannot read the images: {path}: no image" in error


@pytest.mark.long
def test_filters_are_pruned_on_image_files(root, tmp_path, capsys):
    options = [
        *("demo", "--dataset", "tiny_imagenet", "--data-dir", str(root), "--data-workers", "0"),
        *("--image-size", "8", "--model", "mlp", "--width", "5", "--batch-size", "8"),
        *("--method", "l1", "--compare", "--pretrain-epochs", "2", "--finetune-epochs", "1"),
        *("--jsv-images", "2", "--latency-repeats", "3", "--runs-dir", str(tmp_path / "runs")),
    ]
    with pytest.raises(SystemExit):
        tpp.main([*options, "--no-augment"])
    assert "--no-augment: the random crops of tiny_imagenet are part" in capsys.readouterr().err
    tpp.main(options)
    [path] = (tmp_path / "runs").glob("tiny*/summary.json")
    summary = json.loads(path.read_text())
    assert summary["dataset_source"].startswith("image files")
    assert summary["filters"]["hidden_0/kernel"] == [1, 5]


def test_parts_are_those_of_the_whole_batches(pristine):
    """Of a training set that fills 3 batches and half of another, for two epochs."""

    def batches(part):
        dataset = load(pristine, image_size=16)
        first, second = (
            dataset.train_batches(jax.random.key(0), epoch, 4, start=start, part=part)
            for epoch, start in ((1, 1), (2, 0))
        )
        return [*first, *second, *dataset.test_batches(4, part=part)]

    whole = batches((0, 1))
    assert len(whole) == 2 + 3 + 2
    for expected, *parts in zip(whole, batches((0, 2)), batches((1, 2)), strict=True):
        for array, *rows in zip(expected, *parts, strict=True):
            np.testing.assert_array_equal(array, np.concatenate(rows))
