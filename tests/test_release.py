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

import ntksap_jax

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DATA = {"ntksap_jax/py.typed"} | {
    f"experiments/grids/{path.name}" for path in (ROOT / "experiments" / "grids").glob("*.toml")
}
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
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    run(sys.executable, "-c", BUILD, dist, cwd=tree)
    [sdist], [wheel] = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return sdist, wheel


def packaged():
    """Python files of the packages: folders with an `__init__.py`, all the way up."""
    for package in ("ntksap_jax", "experiments"):
        for path in (ROOT / package).rglob("*.py"):
            folders = path.relative_to(ROOT).parents
            if all((ROOT / folder / "__init__.py").exists() for folder in list(folders)[:-1]):
                yield path.relative_to(ROOT).as_posix()


def test_the_wheel_holds_the_packages_and_nothing_else(release):
    _, wheel = release
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    about = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - about == {*packaged(), *DATA}
    assert any(name.endswith("/licenses/LICENSE") for name in about)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert re.search(r"^License(-Expression)?: Apache-2.0$", text, re.MULTILINE)
    assert "Requires-Python: >=3.11" in text
    required = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", text, re.MULTILINE)
    assert sorted(required) == ["flax", "jax", "numpy", "optax"]


def test_the_sdist_builds_again_and_brings_no_data(release):
    sdist, wheel = release
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        sizes = sum(member.size for member in archive.getmembers())
    files = {*packaged(), *DATA}
    assert files | {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= names
    extra = {name for name in names - files if name.startswith(("ntksap_jax/", "experiments/"))}
    assert not {name for name in extra if "." in Path(name).name}, extra
    assert not {name for name in names if name.startswith("tests/") and name != "tests/"}
    assert sizes < 5_000_000
    folder = sdist.parent / "again"
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [tree] = folder.iterdir()
    run(sys.executable, "-c", BUILD.replace("build_meta.build_sdist", "str"), folder, cwd=tree)
    [again] = folder.glob("*.whl")
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
    block = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    example = block.replace("batch_size=100", "batch_size=4").replace("rounds=20", "rounds=2")
    example += (
        "print(nts.__file__)\nprint(nts.masks.num_kept(mask), nts.masks.num_prunable(mask))\n"
    )
    (tmp_path / "empty").mkdir()
    options = {"cwd": tmp_path / "empty"}
    # -I: neither this folder's files nor PYTHONPATH.
    place, counts = run(python, "-I", "-c", example, **options).splitlines()
    assert Path(place).parent == site / "ntksap_jax"
    assert Path(place) != Path(ntksap_jax.__file__)
    kept, prunable = map(int, counts.split())
    assert kept == round(0.05 * prunable)
    # The programs come with it, and the grids that they name.
    listed = run(python, "-I", "-m", "experiments.sweep", "digits", "--list", **options)
    assert "ntk_sap" in listed
