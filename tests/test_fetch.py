"""`python -m clipkit.fetch`: each data set arrives as its reader wants it, and the command as a person runs it."""

import hashlib
import io
import json
import random
import signal
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from omegaconf import OmegaConf

from clipkit.data.fetching import Item, fetch_item
from clipkit.data.records import Records
from clipkit.data.sources.caltech101 import caltech101
from clipkit.data.sources.cars import cars
from clipkit.data.sources.cifar10 import cifar10
from clipkit.data.sources.coco import coco
from clipkit.data.sources.flickr import flickr8k, flickr30k
from clipkit.data.sources.imagenet import imagenet
from clipkit.runs.choices import groups, read_option
from clipkit.runs.combinations import check_combination
from clipkit.runs.compose import compose_config
from clipkit.runs.fetch import items_of, nothing_to_fetch
from conftest import Command
from data.sources import layouts, test_caltech101, test_cars, test_cifar10, test_imagenet
from file_server import File, FileServer, serving

FETCHABLE = [name for name in groups()["data"] if read_option("data", name).get("fetch", {}).get("files")]
UNCHECKED = {"sha256": None, "md5": None, "size": None}  # our archives are not those that were published


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as one:
        yield one


def packed(folder: Path, *names: str, kind: str = "zip") -> bytes:
    """Some of a folder's files and folders as an archive, by their paths in it."""
    stream = io.BytesIO()
    files = [f for name in names for f in sorted((folder / name).rglob("*")) or [folder / name] if f.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(folder))
    else:
        with tarfile.open(fileobj=stream, mode="w:gz" if kind == "tar.gz" else "w") as tar:
            for file in files:
                tar.add(file, file.relative_to(folder))
    return stream.getvalue()


def items(data: str, root: Path, server: FileServer, *overrides: str) -> list[Item]:
    """The parts of a data set as the command reads them, from the mirror and without published checksums."""
    files = [f"data.fetch.files.{name}" for name in read_option("data", data).fetch.files]
    nulls = [
        f"{file}.{key}=null"
        for file in files
        for key in UNCHECKED
        if OmegaConf.select(read_option("data", data), f"{file.removeprefix('data.')}.{key}") is not None
    ]
    given = [f"data={data}", f"data.root={root}", f"mirror={server.address}", *nulls, *overrides]
    return items_of(compose_config("fetch", given))


def fetched(data: str, root: Path, server: FileServer, *overrides: str) -> list[str]:
    return [fetch_item(item, root).state for item in items(data, root, server, *overrides)]


def same(found: Records, there: Path, read: Callable[[Path], Records]) -> bool:
    """Whether a folder holds the records of another, pictures included."""
    wanted = read(there)
    assert len(found) == len(wanted) > 0
    rows = range(len(found))
    pictures = all(
        found.reader(found.image_name(i)).tobytes() == wanted.reader(wanted.image_name(i)).tobytes() for i in rows
    )
    return pictures and all(found.table[c].to_pylist() == wanted.table[c].to_pylist() for c in ("captions", "split"))


def test_coco_2017_arrives_as_it_is_read(server: FileServer, tmp_path: Path) -> None:
    there, root = tmp_path / "there", tmp_path / "root"
    layouts.write_coco_2017(there)
    (there / "annotations" / "instances_train2017.json").write_text("{}")
    server.files["/annotations/annotations_trainval2017.zip"] = File(packed(there, "annotations"))
    for name in ("train2017", "val2017"):
        server.files[f"/zips/{name}.zip"] = File(packed(there, name))
    assert fetched("coco", root, server) == ["fetched"] * 3
    assert same(coco(root), there, coco)
    assert not (root / "annotations" / "instances_train2017.json").exists(), "boxes are of no use here"


def test_coco_karpathy_arrives_as_it_is_read(server: FileServer, tmp_path: Path) -> None:
    there, root = tmp_path / "there", tmp_path / "root"
    layouts.write_coco_karpathy(there)
    (there / "dataset_flickr8k.json").write_text("{}")
    zipped = packed(there, "dataset_coco.json", "dataset_flickr8k.json")
    server.files["/people/karpathy/deepimagesent/caption_datasets.zip"] = File(zipped)
    for name in ("train2014", "val2014"):
        server.files[f"/zips/{name}.zip"] = File(packed(there, name))
    assert fetched("coco", root, server, "data.layout=karpathy") == ["fetched"] * 3
    assert same(coco(root), there, coco)


def serve_flickr8k(server: FileServer, there: Path) -> None:
    layouts.write_flickr8k_original(there)
    (there / "Flicker8k_Dataset" / "in_no_list.jpg").write_bytes(random.Random(0).randbytes(1_000_000))
    texts = [f.name for f in there.glob("*.txt")]
    release = "/jbrownlee/Datasets/releases/download/Flickr8k"
    server.files[f"{release}/Flickr8k_text.zip"] = File(packed(there, *texts))
    server.files[f"{release}/Flickr8k_Dataset.zip"] = File(packed(there, "Flicker8k_Dataset"))


def test_flickr8k_arrives_as_it_is_read(server: FileServer, tmp_path: Path) -> None:
    serve_flickr8k(server, tmp_path / "there")
    assert fetched("flickr8k", tmp_path / "root", server) == ["fetched"] * 2
    assert same(flickr8k(tmp_path / "root"), tmp_path / "there", flickr8k)


def test_flickr30k_arrives_as_it_is_read(server: FileServer, tmp_path: Path) -> None:
    there, root = tmp_path / "there", tmp_path / "root"
    layouts.write_flickr_karpathy(there, "flickr30k", "flickr30k_images")
    zipped = packed(there, "dataset_flickr30k.json")
    server.files["/people/karpathy/deepimagesent/caption_datasets.zip"] = File(zipped)
    assert fetched("flickr30k", root, server) == ["fetched"]
    (there / "flickr30k_images").rename(root / "flickr30k_images")  # by hand
    (there / "flickr30k_images").symlink_to(root / "flickr30k_images")
    assert same(flickr30k(root), there, flickr30k)


def test_cifar10_arrives_as_it_is_read(server: FileServer, tmp_path: Path) -> None:
    there, root = tmp_path / "there", tmp_path / "root"
    (there / "cifar-10-batches-py").mkdir(parents=True)
    for name, content in test_cifar10.contents().items():
        (there / "cifar-10-batches-py" / name).write_bytes(test_cifar10.python2(content))
    server.files["/~kriz/cifar-10-python.tar.gz"] = File(packed(there, "cifar-10-batches-py", kind="tar.gz"))
    assert fetched("cifar10", root, server) == ["fetched"]
    assert same(cifar10(root), there, cifar10)


def test_caltech101_arrives_as_it_is_read(server: FileServer, tmp_path: Path) -> None:
    there, root = tmp_path / "there", tmp_path / "root"
    test_caltech101.fill(there / "101_ObjectCategories")
    (tmp_path / "outer" / "caltech-101").mkdir(parents=True)
    inner = packed(there, "101_ObjectCategories", kind="tar.gz")
    (tmp_path / "outer" / "caltech-101" / "101_ObjectCategories.tar.gz").write_bytes(inner)
    (tmp_path / "outer" / "caltech-101" / "Annotations.tar").write_bytes(b"boxes")
    server.files["/records/mzrjq-6wc02/files/caltech-101.zip"] = File(packed(tmp_path / "outer", "caltech-101"))
    assert fetched("caltech101", root, server) == ["fetched"]
    assert same(caltech101(root), there, caltech101)


def test_imagenet_is_unpacked_once_a_person_has_put_its_archives_there(server: FileServer, tmp_path: Path) -> None:
    there, root = tmp_path / "there", tmp_path / "root"
    test_imagenet.flat(there)
    assert fetched("imagenet", root, server) == ["absent", "absent"]
    (root / "ILSVRC2012_img_val.tar").write_bytes(packed(there / "val", ".", kind="tar"))
    devkit = packed(there, "ILSVRC2012_devkit_t12", kind="tar.gz")
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit)
    assert fetched("imagenet", root, server) == ["fetched", "fetched"]
    assert (root / "ILSVRC2012_img_val.tar").exists()
    assert same(imagenet(root), there, imagenet)
    assert server.log == []


def serve_cars(server: FileServer, there: Path, data: str) -> None:
    """As the hub answers: the list of files, and each with its name by content."""
    test_cars.mirror(there)
    about = read_option("data", data).fetch.files.parquet.hub
    tree = []
    for file in sorted((there / "data").glob("*.parquet")):
        content, path = file.read_bytes(), file.relative_to(there).as_posix()
        sha256 = hashlib.sha256(content).hexdigest()
        lfs = {"oid": sha256, "size": len(content), "pointerSize": 100}
        tree.append({"type": "file", "path": path, "size": len(content), "oid": "0" * 40, "lfs": lfs})
        headers = {"X-Repo-Commit": about.revision, "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        where = f"/datasets/{about.repository}/resolve/{about.revision}/{path}"
        server.files[where] = File(content, headers=headers)
    listing = File(json.dumps(tree).encode(), headers={"Content-Type": "application/json"})
    server.files[f"/api/datasets/{about.repository}/tree/{about.revision}"] = listing


def test_cars_come_from_the_hub(server: FileServer, tmp_path: Path, clipkit: Command) -> None:
    there, root = tmp_path / "there", tmp_path / "root"
    serve_cars(server, there, "cars")
    hub = {"HF_ENDPOINT": server.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    done = clipkit("fetch", "data=cars", f"data.root={root}", **hub)
    assert done.returncode == 0, done.stderr
    assert same(cars(root), there, cars)
    assert not (root / "data" / "contrast-00000-of-00001.parquet").exists(), "of the copy, not of the data set"
    asked = len(server.log)
    assert [fetch_item(item, root).state for item in items("cars", root, server)] == ["complete"]
    assert len(server.log) == asked


def test_every_download_is_described_and_checked() -> None:
    """What is written in the YAMLs: https where the server has it, a checksum of the right length, a licence."""
    length = {"sha256": 64, "sha1": 40, "md5": 32}
    for data in FETCHABLE:
        fetch = read_option("data", data).fetch
        assert fetch.licence
        for key, entry in fetch.files.items():
            if "hub" in entry:
                assert len(entry.hub.revision) == 40
                continue
            kinds = [kind for kind in length if kind in entry]
            assert len(kinds) == 1, f"{data}.{key}"
            assert len(entry[kinds[0]]) == length[kinds[0]]
            address = urlsplit(entry.url or "https://")
            assert address.scheme == "https" or address.hostname == "images.cocodataset.org"


def test_data_sets_without_a_download_say_so_and_need_no_folder() -> None:
    for data in {*groups()["data"]} - {*FETCHABLE}:
        config = compose_config("fetch", [f"data={data}"])
        assert check_combination(config) == []
        assert "nothing to fetch" in (nothing_to_fetch(config) or "")
    needed = compose_config("fetch", ["data=coco"])
    assert check_combination(needed) == ["data.root is needed: data.root=…"]
    assert check_combination(compose_config("fetch", ["data=coco", "data.root=/no/such/folder"])) == []
    assert check_combination(compose_config("train", ["data=coco", "data.root=/no/such/folder"])) != []


def wait_for(condition: Callable[[], bool]) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 60
        time.sleep(0.02)


def test_a_killed_command_goes_on_where_it_was(server: FileServer, tmp_path: Path, clipkit: Command) -> None:
    serve_flickr8k(server, tmp_path / "there")
    pictures = server.files["/jbrownlee/Datasets/releases/download/Flickr8k/Flickr8k_Dataset.zip"]
    pictures.hold = len(pictures.content) // 2
    root, part = tmp_path / "my root", tmp_path / "my root" / "Flickr8k_Dataset.zip.part"
    line = ["data=flickr8k", f"data.root={root}", f"mirror={server.address}"]
    line += [f"data.fetch.files.{name}.md5=null" for name in ("captions", "pictures")]
    running = clipkit.start("fetch", *line)
    wait_for(lambda: part.exists() and part.stat().st_size > 0)
    running.kill()
    running.wait()
    have = part.stat().st_size
    assert 0 < have < len(pictures.content)
    pictures.release.set()
    server.log.clear()

    done = clipkit("fetch", *line)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(seen.range, seen.sent) for seen in server.log] == [(f"bytes={have}-", len(pictures.content) - have)]
    assert same(flickr8k(root), tmp_path / "there", flickr8k)
    for words in ("no published checksum", "non-commercial", "Flicker8k_Dataset/", "35 files"):
        assert words in done.stdout
    assert f"next: python -m clipkit.describe data=flickr8k 'data.root={root}'" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"there", "my root"}, "no run folder is left"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_how_to_go_on(server: FileServer, tmp_path: Path, clipkit: Command, number: signal.Signals) -> None:
    serve_flickr8k(server, tmp_path / "there")
    for file in server.files.values():
        file.hold = 100
    line = ["data=flickr8k", f"data.root={tmp_path / 'root'}", f"mirror={server.address}"]
    running = clipkit.start("fetch", *line, "data.fetch.files.captions.md5=null")
    wait_for(lambda: bool(server.log))
    running.send_signal(number)
    said, _ = running.communicate(timeout=30)
    assert running.returncode == 128 + number
    assert "To go on: python -m clipkit.fetch data=flickr8k data.root=" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_mistakes_are_one_message(server: FileServer, tmp_path: Path, clipkit: Command) -> None:
    serve_flickr8k(server, tmp_path / "there")
    (tmp_path / "file").write_text("no folder")
    mirror = f"mirror={server.address}"
    for arguments, words in (
        (["data=flickr8k", f"data.root={tmp_path / 'file'}"], "cannot be made"),
        (["data=flickr8k", f"data.root={tmp_path / 'a'}", mirror], "bf6c1abcb8e4a833b7f922104de18627 was published"),
        (["data=cifar10", f"data.root={tmp_path / 'b'}", mirror], "404"),
    ):
        done = clipkit("fetch", *arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
