"""From an archive on a loopback server to a folder that loads; every way in which that can fail."""

import functools
import gc
import gzip
import hashlib
import http.server
import io
import socket
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.data import DataError, catalogue, memory, prepare, prepared
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
    return (
        np.concatenate([*(column[:, None] for column in labels), planes], 1).astype("u1").tobytes()
    )


def tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(
        size.to_bytes(4, "big") for size in values.shape
    )
    return gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0)


def cifar10_members() -> dict[str, bytes]:
    per_file = NUM_TRAIN // 5
    members: dict[str, bytes] = {
        "batches.meta.txt": "\n".join([*NAMES[:10], "", ""]).encode(),
        "readme.html": b"not needed",
        "test_batch.bin": rows(TEST, FINE_TEST % 10),
    }
    for number in range(5):
        part = slice(number * per_file, (number + 1) * per_file)
        members[f"data_batch_{number + 1}.bin"] = rows(TRAIN[part], FINE_TRAIN[part] % 10)
    return {f"cifar-10-batches-bin/{name}": content for name, content in members.items()}


def official_files(name: str) -> dict[str, bytes]:
    if name == "cifar10":
        return {"cifar-10-binary.tar.gz": tar(cifar10_members())}
    if name == "cifar100":
        members: dict[str, bytes] = {
            "cifar-100-binary/coarse_label_names.txt": "\n".join(NAMES[:20]).encode(),
            "cifar-100-binary/fine_label_names.txt": "\n".join(NAMES).encode(),
            "cifar-100-binary/train.bin": rows(TRAIN, FINE_TRAIN // 5, FINE_TRAIN),
            "cifar-100-binary/test.bin": rows(TEST, FINE_TEST // 5, FINE_TEST),
        }
        return {"cifar-100-binary.tar.gz": tar(members)}
    return {
        "train-images-idx3-ubyte.gz": idx(GREY_TRAIN),
        "train-labels-idx1-ubyte.gz": idx(FINE_TRAIN % 10),
        "t10k-images-idx3-ubyte.gz": idx(GREY_TEST),
        "t10k-labels-idx1-ubyte.gz": idx(FINE_TEST % 10),
    }


def small_spec(name: str, files: dict[str, bytes], url: str = "http://127.0.0.1:9") -> Spec:
    """The catalogue's entry with fewer images, of which `files` are the official ones."""
    OFFICIAL[name] = {
        file: (f"{url}/{file}", hashlib.sha256(content).hexdigest())
        for file, content in files.items()
    }
    return catalogue.SPECS[name]._replace(num_train=NUM_TRAIN, num_test=NUM_TEST)


OFFICIAL: dict[str, dict[str, tuple[str, str]]] = {}


@pytest.fixture
def small(monkeypatch):
    """The official files are those that a test has made."""
    monkeypatch.setattr(prepare, "official_files", lambda spec: OFFICIAL[spec.name])


# -- A server on loopback ------------------------------------------------------------------------


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


@pytest.fixture
def serve(tmp_path, small):
    """Starts a server for the files given, and returns it and its address."""
    servers = []

    def start(files: dict[str, bytes]):
        folder = tmp_path / f"served-{len(servers)}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
        )
        server.requests, server.break_after = [], None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server, f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


# -- It works ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_from_the_servers_archive_to_a_folder_that_loads(name, serve, tmp_path, capsys):
    files = official_files(name)
    _, url = serve(files)
    spec, root = small_spec(name, files, url), tmp_path / "data"
    assert prepare.prepare(spec, root) == root / name / spec.version
    assert capsys.readouterr().out == ""
    assert prepared.locate(spec, root) == root / name / spec.version
    assert sorted(path.name for path in root.iterdir()) == [name]

    if name == "fashion_mnist":
        images = {"train": GREY_TRAIN[..., None], "test": GREY_TEST[..., None]}
    else:
        images = {"train": TRAIN, "test": TEST}
    fine = {"train": FINE_TRAIN, "test": FINE_TEST}
    dataset = memory.load(spec, root)
    assert dataset.note == ""
    for split, found, labels in (
        ("train", dataset.train_images, dataset.train_labels),
        ("test", dataset.test_images, dataset.test_labels),
    ):
        expected = fine[split] % spec.num_classes
        # TFDS orders the records by the salted hash of their keys, and our keys are the indices.
        hasher = tfds.core.hashing.Hasher(split)
        order = sorted(range(len(expected)), key=hasher.hash_key)
        np.testing.assert_array_equal(found, images[split][order])
        np.testing.assert_array_equal(labels, expected[order])


def test_records_have_tfdss_ids_and_both_labels(serve, tmp_path):
    files = official_files("cifar100")
    _, url = serve(files)
    prepare.prepare(small_spec("cifar100", files, url), tmp_path)
    splits = tfds.data_source("cifar100:3.0.2", data_dir=tmp_path, download=False)
    for split, fine in (("train", FINE_TRAIN), ("test", FINE_TEST)):
        records = {record["id"].decode(): record for record in splits[split]}
        assert sorted(records) == [f"{split}_{index:05d}" for index in range(len(fine))]
        for index, label in enumerate(fine):
            record = records[f"{split}_{index:05d}"]
            assert (record["label"], record["coarse_label"]) == (label, label // 5)
    features = tfds.builder("cifar100:3.0.2", data_dir=tmp_path).info.features
    assert features["label"].names == NAMES and features["coarse_label"].names == NAMES[:20]


def test_the_metadata_are_those_of_tfdss_own_builder(serve, tmp_path):
    files = official_files("cifar10")
    _, url = serve(files)
    folder = prepare.prepare(small_spec("cifar10", files, url), tmp_path)
    found = tfds.builder_from_directory(folder).info
    official = tfds.builder_cls("cifar10")(data_dir=tmp_path / "elsewhere").info
    assert found.full_name == official.full_name
    assert found.description == official.description
    assert found.features["image"].shape == official.features["image"].shape


def test_what_is_prepared_is_not_prepared_again(serve, tmp_path, monkeypatch):
    files = official_files("cifar10")
    server, url = serve(files)
    spec = small_spec("cifar10", files, url)
    folder = prepare.prepare(spec, tmp_path)
    server.requests.clear()
    monkeypatch.setattr(prepare, "write", lambda *args: pytest.fail("written again"))
    assert prepare.prepare(spec, tmp_path) == folder
    assert server.requests == []


def test_a_mirror_and_a_folder_of_this_machine_serve_as_well(serve, tmp_path):
    files = official_files("cifar10")
    spec = small_spec("cifar10", files)
    server, url = serve(files)
    assert prepare.prepare(spec, tmp_path / "one", url=f"{url}/").is_dir()
    assert server.requests == ["/cifar-10-binary.tar.gz"]
    local = tmp_path / "with space"
    local.mkdir()
    for name, content in files.items():
        (local / name).write_bytes(content)
    assert prepare.prepare(spec, tmp_path / "two", url=local.as_uri()).is_dir()
    assert all((local / name).exists() for name in files)


# -- What goes wrong -----------------------------------------------------------------------------


# Requests leaves a connection that broke off to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["forged", "cut", "missing", "longer"])
def test_another_file_than_the_official_one_is_refused_and_nothing_stays(damage, serve, tmp_path):
    files = official_files("cifar10")
    [(name, content)] = files.items()
    spec = small_spec("cifar10", files)
    others = {"forged": content[::-1], "cut": content, "longer": content + b"more"}
    server, url = serve({name: others[damage]} if damage in others else {})
    server.break_after = 2000 if damage == "cut" else None
    with pytest.raises(DataError, match=f"cannot download {url}/{name}: .*--url file:///") as error:
        prepare.prepare(spec, tmp_path / "data", url=url)
    assert "\n" not in str(error.value)
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []
    assert not (tmp_path / "data" / "cifar10").exists()
    del error
    gc.collect()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("url", ["somewhere", "gopher://127.0.0.1/x", "file:///nowhere", None])
def test_what_is_no_address_or_answers_nothing(url, tmp_path, small):
    url = url or f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(DataError, match=f"cannot download {url}/cifar-10-binary.tar.gz: "):
        prepare.prepare(small_spec("cifar10", official_files("cifar10")), tmp_path, url=url)


def test_an_interrupted_preparation_leaves_no_folder_and_can_be_repeated(
    serve, tmp_path, monkeypatch
):
    files = official_files("cifar10")
    server, url = serve(files)
    spec = small_spec("cifar10", files, url)
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
    spec = small_spec("cifar10", official_files("cifar10"))
    with pytest.raises(DataError, match=rf"{folder} has no dataset_info.json.*Move it away"):
        prepare.prepare(spec, tmp_path)
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_a_place_that_cannot_be_written_is_said_before_the_download(serve, tmp_path):
    files = official_files("cifar10")
    server, url = serve(files)
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "data"
    with pytest.raises(DataError, match=f"cannot write to {place}"):
        prepare.prepare(small_spec("cifar10", files, url), place)
    assert server.requests == []


def test_another_version_of_tfds_data_is_refused(serve, tmp_path):
    files = official_files("cifar10")
    spec = small_spec("cifar10", files, serve(files)[1])._replace(version="9.9.9")
    with pytest.raises(DataError, match=r"makes cifar10 3\.0\.2, and 9\.9\.9 is needed"):
        prepare.prepare(spec, tmp_path / "data")


# -- The command line ----------------------------------------------------------------------------


def error_of(capsys) -> str:
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "cifar11"], "unknown data set 'cifar11'. Did you mean cifar10?"),
        (["prepare", "fashion-mnist"], "Did you mean fashion_mnist?"),
        (["prepar", "cifar10"], "unknown command 'prepar'. Did you mean prepare?"),
    ],
)
def test_an_unknown_word_is_one_line_and_code_2(arguments, message, capsys):
    assert code_of(arguments) == 2
    assert message in error_of(capsys)


def code_of(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


def test_failures_are_one_line_and_code_2(tmp_path, capsys):
    url = f"http://127.0.0.1:{closed_port()}"
    assert code_of(["prepare", "cifar10", "--data-dir", str(tmp_path), "--url", url]) == 2
    assert f"error: cannot download {url}/cifar-10-binary.tar.gz" in error_of(capsys)
    assert code_of(["prepare", "digits"]) == 2
    assert "nothing to prepare" in error_of(capsys)


def test_the_command_line_prepares_where_it_is_told(serve, tmp_path, capsys, monkeypatch):
    files = official_files("cifar10")
    _, url = serve(files)
    monkeypatch.setitem(catalogue.SPECS, "cifar10", small_spec("cifar10", files))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    main(["prepare", "cifar10", "--url", url])
    assert capsys.readouterr().out == f"{tmp_path / 'cifar10' / '3.0.2'}\n"
    main(["list"])
    table = capsys.readouterr().out
    states = {
        line.split("│")[1].strip(): line.split("│")[-2].strip()
        for line in table.splitlines()
        if "│" in line
    }
    assert states == {
        "digits": "embedded",
        "cifar10": "prepared",
        "cifar100": "not prepared",
        "fashion_mnist": "not prepared",
        "tiny_imagenet": "not there",
        "imagenet": "not there",
    }
    assert str(tmp_path) in table
