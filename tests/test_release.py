"""The release: what is in sdist and wheel, and that the wheel alone runs the library."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # (building changes sys.argv)
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Sdist and wheel, built aside from what a checkout has; without an index."""
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools")
    tree, dist = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    run(sys.executable, "-c", BUILD, dist, cwd=tree)
    [sdist], [wheel] = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return sdist, wheel


def library():
    """Files of the library."""
    package = ROOT / "ntksap_jax"
    paths = [*package.rglob("*.py"), *package.rglob("*.cpp"), package / "py.typed"]
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_the_wheel_holds_the_library_and_nothing_else(release):
    _, wheel = release
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    about = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - about == library()
    assert any(name.endswith("/licenses/LICENSE") for name in about)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert re.search(r"^License(-Expression)?: Apache-2.0$", text, re.MULTILINE)
    assert "Requires-Python: >=3.11" in text
    required = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", text, re.MULTILINE)
    assert set(required) >= {"flax", "jax", "numpy", "optax"} and len(required) <= 5


def test_the_sdist_builds_the_same_wheel_and_brings_no_data(release, tmp_path):
    sdist, wheel = release
    with tarfile.open(sdist) as archive:
        assert sum(member.size for member in archive.getmembers()) < 5_000_000
        archive.extractall(tmp_path, filter="data")
    [tree] = tmp_path.iterdir()
    assert not any((tree / "tests").rglob("*.*"))
    run(sys.executable, "-c", BUILD.replace("build_meta.build_sdist", "str"), tmp_path, cwd=tree)
    [again] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(wheel) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


def test_the_wheel_alone_runs_the_readme(release, tmp_path):
    """In an environment with nothing but it; its requirements are those of this one, on a path."""
    _, wheel = release
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel)
    [site] = (tmp_path / "venv").glob("lib/python*/site-packages")
    # A path in a .pth file: packages are found there, but no editable install of this one is.
    (site / "requirements.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    readme = (ROOT / "README.md").read_text()
    example = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[0]
    example = example.replace("(network)", "(network, num_samples=1, batch_size=4)")
    example += "print(nts.__file__)\nprint(nts.masks.num_kept(mask), nts.masks.num_prunable(mask))"
    (tmp_path / "empty").mkdir()
    # -I: neither this folder's files nor PYTHONPATH.
    *_, place, counts = run(python, "-I", "-c", example, cwd=tmp_path / "empty").splitlines()
    assert Path(place).parent == site / "ntksap_jax"
    kept, prunable = map(int, counts.split())
    assert kept == round(0.05 * prunable)
