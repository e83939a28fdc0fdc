"""From an archive on a loopback server to a folder that loads; every way in which that can fail."""

import functools
import gc
import gzip
import hashlib
import http.server
import io
import re
import tarfile
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.data import DataError, catalogue, loading, prepare, prepared
from experiments.data.catalogue import Spec
from experiments.data.program import main

NUM_TRAIN, NUM_TEST = 20, 6


# -- Small archives with the official layout -----------------------------------------------------


def pixels(seed: int, count: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


TRAIN, TEST = pixels(0, NUM_TRAIN, (32, 32, 3)), pixels(1, NUM_TEST, (32, 32, 3))
GREY_TRAIN, GREY_TEST = pixels(2, NUM_TRAIN, (28, 28)), pixels(3, NUM_TEST, (28, 28))
FINE_TRAIN, FINE_TEST = np.arange(NUM_TRAIN) * 4, np.arange(NUM_TEST) + 90
NAMES = [f"class {index}" for index in range(100)]


def rows(images: np.ndarray, *labels: np.ndarray) -> bytes:
    """CIFAR's binary rows: a byte a label, then the red, the green and the blue plane."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.column_stack([*labels, planes]).astype("u1").tobytes()


def tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"binary/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0)


def official_files(name: str) -> dict[str, bytes]:
    if name == "cifar10":
        fifths = zip(np.split(TRAIN, 5), np.split(FINE_TRAIN % 10, 5), strict=True)
        members = {f"data_batch_{n}.bin": rows(*fifth) for n, fifth in enumerate(fifths, 1)} | {
            "batches.meta.txt": "\n".join([*NAMES[:10], "", ""]).encode(),
            "readme.html": b"not needed",
            "test_batch.bin": rows(TEST, FINE_TEST % 10),
        }
        return {"cifar-10-binary.tar.gz": tar(members)}
    if name == "cifar100":
        members = {
            "coarse_label_names.txt": "\n".join(NAMES[:20]).encode(),
            "fine_label_names.txt": "\n".join(NAMES).encode(),
            "train.bin": rows(TRAIN, FINE_TRAIN // 5, FINE_TRAIN),
            "test.bin": rows(TEST, FINE_TEST // 5, FINE_TEST),
        }
        return {"cifar-100-binary.tar.gz": tar(members)}
    return {
        "train-images-idx3-ubyte.gz": idx(GREY_TRAIN),
        "train-labels-idx1-ubyte.gz": idx(FINE_TRAIN % 10),
        "t10k-images-idx3-ubyte.gz": idx(GREY_TEST),
        "t10k-labels-idx1-ubyte.gz": idx(FINE_TEST % 10),
    }


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and notes what was asked for; breaks off after `break_after` bytes."""

    def do_GET(self):
        self.server.requests.append(self.path)
        if self.server.break_after is None:
            super().do_GET()
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.break_after])

    def log_message(self, *args):
        pass


class Served(NamedTuple):
    """The catalogue's entry with fewer images, and a server that has its official files."""

    spec: Spec
    server: http.server.ThreadingHTTPServer
    url: str
    folder: Path


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serves small archives as the official files of a data set."""
    folder = tmp_path / "served with space"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    server.requests, server.break_after = [], None
    url = f"http://127.0.0.1:{server.server_port}"

    def start(name: str = "cifar10") -> Served:
        official = {}
        for file, content in official_files(name).items():
            (folder / file).write_bytes(content)
            official[file] = f"{url}/{file}", hashlib.sha256(content).hexdigest()
        monkeypatch.setattr(prepare, "official_files", lambda spec: official)
        spec = catalogue.SPECS[name]._replace(num_train=NUM_TRAIN, num_test=NUM_TEST)
        return Served(spec, server, url, folder)

    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield start
    server.shutdown()
    server.server_close()


# -- It works ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_from_the_servers_archive_to_a_folder_that_loads(name, serve, tmp_path, capsys):
    spec, root = serve(name).spec, tmp_path / "data"
    assert prepare.prepare(spec, root) == prepared.locate(spec, root) == root / name / spec.version
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in root.iterdir()) == [name]

    grey = name == "fashion_mnist"
    train, test = (GREY_TRAIN[..., None], GREY_TEST[..., None]) if grey else (TRAIN, TEST)
    dataset = loading.load_arrays(spec, root)
    assert dataset.note == "" and dataset.class_names[0] == ("T-shirt/top" if grey else "class 0")
    for split, images, fine, found, labels in (
        ("train", train, FINE_TRAIN, dataset.train_images, dataset.train_labels),
        ("test", test, FINE_TEST, dataset.test_images, dataset.test_labels),
    ):
        expected = fine % spec.num_classes
        # TFDS orders the records by the salted hash of their keys, and our keys are the indices.
        hasher = tfds.core.hashing.Hasher(split)
        order = sorted(range(len(expected)), key=hasher.hash_key)
        np.testing.assert_array_equal(found, images[order])
        np.testing.assert_array_equal(labels, expected[order])


def test_ids_labels_and_metadata_are_those_of_tfdss_own_builder(serve, tmp_path):
    prepare.prepare(serve("cifar100").spec, tmp_path)
    splits = tfds.data_source("cifar100:3.0.2", data_dir=tmp_path, download=False)
    for split, fine in (("train", FINE_TRAIN), ("test", FINE_TEST)):
        records = {record["id"].decode(): record for record in splits[split]}
        assert sorted(records) == [f"{split}_{index:05d}" for index in range(len(fine))]
        for index, label in enumerate(fine):
            record = records[f"{split}_{index:05d}"]
            assert (record["label"], record["coarse_label"]) == (label, label // 5)
    info = tfds.builder("cifar100:3.0.2", data_dir=tmp_path).info
    assert info.features["label"].names == NAMES
    assert info.features["coarse_label"].names == NAMES[:20]
    official = tfds.builder_cls("cifar100")(data_dir=tmp_path / "elsewhere").info
    assert (info.full_name, info.description) == (official.full_name, official.description)
    assert info.features["image"].shape == official.features["image"].shape


def test_a_mirror_and_a_folder_of_this_machine_serve_and_nothing_is_prepared_twice(
    serve, tmp_path, monkeypatch
):
    spec, server, url, folder = serve()
    assert prepare.prepare(spec, tmp_path / "two", url=folder.as_uri()).is_dir()
    assert server.requests == [] and len(list(folder.iterdir())) == 1
    prepared_folder = prepare.prepare(spec, tmp_path / "one", url=f"{url}/")
    assert server.requests == ["/cifar-10-binary.tar.gz"]
    monkeypatch.setattr(prepare, "write", lambda *args: pytest.fail("written again"))
    assert prepare.prepare(spec, tmp_path / "one") == prepared_folder
    assert len(server.requests) == 1


# -- What goes wrong -----------------------------------------------------------------------------


# Requests leaves a connection that broke off to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["forged", "cut", "missing"])
def test_another_file_than_the_official_one_is_refused_and_nothing_stays(damage, serve, tmp_path):
    spec, server, url, folder = serve()
    [path] = folder.iterdir()
    if damage == "missing":
        path.unlink()
    elif damage == "forged":
        path.write_bytes(path.read_bytes()[::-1])
    else:
        server.break_after = 2000
    message = f"cannot download {url}/{path.name}: .*--url file:///"
    with pytest.raises(DataError, match=message) as error:
        prepare.prepare(spec, tmp_path / "data", url=url)
    assert "\n" not in str(error.value)
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []
    assert not (tmp_path / "data" / "cifar10").exists()
    del error
    gc.collect()


# Nothing listens at port 9, once meant for what is to be discarded.
ADDRESSES = ("gopher://127.0.0.1/x", "file:///nowhere", "http://127.0.0.1:9")


@pytest.mark.parametrize("url", ADDRESSES)
def test_what_is_no_address_or_answers_nothing(url, tmp_path, serve):
    with pytest.raises(DataError, match=f"cannot download {url}/cifar-10-binary.tar.gz: "):
        prepare.prepare(serve().spec, tmp_path, url=url)


def test_an_interrupted_preparation_leaves_no_folder_and_can_be_repeated(
    serve, tmp_path, monkeypatch
):
    spec, server, *_ = serve()
    encode, calls = prepare._encode, []

    def interrupt(image):
        calls.append(1)
        if len(calls) == NUM_TRAIN + 3:
            raise KeyboardInterrupt
        return encode(image)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare, "_encode", interrupt)
        prepare.prepare(spec, tmp_path)
    assert not (tmp_path / "cifar10" / "3.0.2").exists()
    with pytest.raises(DataError, match="not prepared"):
        prepared.locate(spec, tmp_path)

    folder = prepare.prepare(spec, tmp_path)
    assert prepared.locate(spec, tmp_path) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["3.0.2"]
    assert len(server.requests) == 1  # The archive was still there.


def test_something_unusable_in_the_place_is_left_alone(tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "mine").write_text("precious")
    spec = catalogue.SPECS["cifar10"]
    with pytest.raises(DataError, match=rf"{folder} has no dataset_info.json.*Move it away"):
        prepare.prepare(spec, tmp_path)
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_a_place_that_cannot_be_written_is_said_before_the_download(serve, tmp_path):
    spec, server, *_ = serve()
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "data"
    with pytest.raises(DataError, match=f"cannot write to {place}"):
        prepare.prepare(spec, place)
    assert server.requests == []


def test_another_version_of_tfds_data_is_refused(serve, tmp_path):
    spec = serve().spec._replace(version="9.9.9")
    with pytest.raises(DataError, match=r"makes cifar10 3\.0\.2, and 9\.9\.9 is needed"):
        prepare.prepare(spec, tmp_path / "data")


# -- The command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "cifar11"], "unknown data set 'cifar11'. Did you mean cifar10?"),
        (["prepare", "tiny_imagenet"], "tiny_imagenet cannot be prepared here"),
        (["prepare", "digits"], "nothing to prepare"),
        (["prepar", "cifar10"], "unknown command 'prepar'. Did you mean prepare?"),
        (["prepare", "cifar10", "--url", "file:///nowhere"], "error: cannot download file:///now"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    output = capsys.readouterr()
    assert stop.value.code == 2 and message in output.err
    assert output.out == "" and output.err.count("\n") == 1


def test_the_command_line_prepares_where_it_is_told(serve, tmp_path, capsys, monkeypatch):
    spec, _, url, _ = serve()
    monkeypatch.setitem(catalogue.SPECS, "cifar10", spec)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    main(["prepare", "cifar10", "--url", url])
    assert capsys.readouterr().out == f"{tmp_path / 'cifar10' / '3.0.2'}\n"
    main(["list"])
    table = capsys.readouterr().out
    rows = [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()[4:] if line.strip()]
    states = {name: state for name, *_, state in rows}
    assert (states["digits"], states["cifar10"]) == ("embedded", "prepared")
    assert (states["cifar100"], states["imagenet"]) == ("not prepared", "not there")
    assert str(tmp_path) in table
