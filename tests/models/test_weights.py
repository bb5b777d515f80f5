"""Weight files: what does not fit is named, what would run code is refused, and memory is used once."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clipkit.errors import UserError
from clipkit.models.weights import (
    REOPEN_AFTER,
    check_names,
    copy_weights,
    each_tensor,
    fill,
    is_uninitialized,
    read_weights,
    tensor_shapes,
    uninitialized,
)

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.5, -2.0]), "count": torch.tensor(7)}


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def write(file: Path, content: Any) -> Path:
    if file.suffix == ".safetensors":
        save_file(content, file)
    else:
        torch.save(content, file)
    return file


@pytest.mark.parametrize("ending", ["safetensors", "pt", "bin"])
def test_what_was_written_is_read(tmp_path: Path, ending: str) -> None:
    assert_same(read_weights(write(tmp_path / f"weights.{ending}", STATE)), STATE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8])
def test_dtypes_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"a": torch.arange(5).to(dtype)}
    assert_same(read_weights(write(tmp_path / "weights.safetensors", state)), state)
    assert_same(read_weights(write(tmp_path / "weights.pt", state)), state)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": STATE, "epoch": 3, "optimizer": {"lr": [0.1]}},
        {"model": STATE, "args": None},
        {"state_dict": {"model": STATE}},
        {f"module.{name}": value for name, value in STATE.items()},
        {"state_dict": {f"module.{name}": value for name, value in STATE.items()}},
    ],
    ids=["state_dict", "model", "both", "module", "state_dict_module"],
)
def test_what_training_scripts_wrap_around_the_weights_is_taken_off(tmp_path: Path, content: Any) -> None:
    assert_same(read_weights(write(tmp_path / "checkpoint.pt", content)), STATE)


@pytest.mark.parametrize("content", [[STATE], 3, {"weight": STATE["weight"], "epoch": 3}])
def test_what_is_no_table_of_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError, match=r"weights\.pt holds no table of named tensors"):
        read_weights(write(tmp_path / "weights.pt", content))


@pytest.mark.parametrize("wrap", [lambda bad: {"weight": torch.ones(1), "bad": bad}, lambda bad: bad])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, wrap: Any) -> None:
    mark = tmp_path / "was_here"
    file = write(tmp_path / "weights.pt", wrap(Hostile(mark)))
    with pytest.raises(UserError, match=r"weights\.pt is a pickle that would run code .* refused"):
        read_weights(file)
    assert not mark.exists()
    torch.load(file, weights_only=False)  # it is indeed one
    assert mark.exists()


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:20], lambda b: b[:-50], lambda b: b"version https:/"])
def test_a_damaged_file_is_named(tmp_path: Path, ending: str, damage: Any) -> None:
    file = write(tmp_path / f"weights.{ending}", {"a": torch.ones(1000)})
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=str(file)):
        read_weights(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for ending in ("safetensors", "pt"):
        with pytest.raises(UserError, match=rf"nowhere\.{ending}: no such file"):
            read_weights(tmp_path / f"nowhere.{ending}")


def test_shapes_are_read_from_the_header_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "weights.safetensors", STATE)
    assert tensor_shapes(file) == {name: value.shape for name, value in STATE.items()}
    file.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"weights\.safetensors cannot be read as safetensors"):
        tensor_shapes(file)
    with pytest.raises(UserError, match=r"weights\.safetensors cannot be read as safetensors"):
        list(each_tensor(file))


def test_each_tensor_comes_once_also_beyond_a_reopening(tmp_path: Path) -> None:
    """Three tensors of 40 MB: the file is opened anew after the second."""
    count = REOPEN_AFTER * 5 // 8 // 4
    state = {name: torch.full((count,), float(index)) for index, name in enumerate(("b", "a", "c"))}
    file = write(tmp_path / "weights.safetensors", {**state, "a::scale": torch.ones(2)})
    seen = [(name, float(value.sum()) / value.numel()) for name, value in each_tensor(file)]
    assert sorted(seen) == [("a", 1.0), ("a::scale", 1.0), ("b", 0.0), ("c", 2.0)]
    assert [name for name, _ in each_tensor(file, ending="::scale")] == ["a::scale"]
    file.unlink()


def test_tensors_that_were_read_are_no_part_of_the_file(tmp_path: Path) -> None:
    """A file may be replaced while its weights are in use."""
    file = write(tmp_path / "weights.safetensors", STATE)
    state = read_weights(file)
    with file.open("r+b") as opened:
        size = file.stat().st_size
        opened.seek(size - 40)
        opened.write(b"\xff" * 40)
    assert_same(state, STATE)


def test_fill_gives_the_module_the_tensors_in_its_own_dtypes() -> None:
    module = nn.BatchNorm1d(3)
    module.half()
    given = {name: torch.full(value.shape, 2.0) for name, value in module.state_dict().items()}
    expected = {name: value.to(module.state_dict()[name].dtype) for name, value in given.items()}
    fill(module, given, source="weights.pt")
    assert given == {}
    assert_same(dict(module.state_dict()), expected)
    assert module.weight.dtype == torch.float16
    assert module.num_batches_tracked.dtype == torch.int64
    assert isinstance(module.weight, nn.Parameter)


def test_fill_copies_nothing_that_fits() -> None:
    module, weight = nn.Linear(4, 4, bias=False), torch.randn(4, 4)
    fill(module, {"weight": weight}, source="weights.pt")
    assert module.weight.data_ptr() == weight.data_ptr()


def test_fill_changes_nothing_if_something_does_not_fit() -> None:
    module = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UserError):
        fill(module, {"weight": torch.zeros(2, 3), "bias": torch.zeros(5)}, source="weights.pt")
    assert_same(dict(module.state_dict()), before)


def test_frozen_parameters_stay_frozen() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    fill(module, {"weight": torch.zeros(2, 3), "bias": torch.ones(2)}, source="weights.pt")
    assert module.weight.requires_grad
    assert not module.bias.requires_grad


def test_what_does_not_fit_is_counted_and_named() -> None:
    expected = {f"layer{index}.weight": torch.zeros(2, 3) for index in range(6)}
    found = {name: value.shape for name, value in expected.items() if name < "layer2"}
    found |= {"layer5.weight": torch.Size([4, 3]), "layer4.weight": torch.Size([])}
    found |= {f"surplus{index}": torch.Size([1]) for index in range(5)}
    with pytest.raises(UserError) as caught:
        check_names(expected, found, source="there/weights.pt")
    said = str(caught.value)
    assert said.startswith("there/weights.pt holds the weights of another architecture")
    assert "the file lacks 2 (layer2.weight, layer3.weight)" in said
    assert "the model has no 5 (surplus0, surplus1, surplus2, …)" in said
    assert "of another shape: 2 (" in said
    assert "layer5.weight (4×3 in the file, 2×3 in the model)" in said
    assert "one number in the file" in said
    assert "surplus3" not in said
    assert said.endswith("Expected: 6 tensors")


def test_what_fits_passes() -> None:
    check_names(STATE, {name: value.shape for name, value in STATE.items()}, source="weights.pt")


def test_one_tensor_is_copied_in_place() -> None:
    module = nn.Linear(3, 2).half()
    place = module.weight.data_ptr()
    copy_weights(module.state_dict(), "weight", STATE["weight"])
    assert module.weight.data_ptr() == place
    assert torch.equal(module.weight, STATE["weight"].half())


def test_building_uninitialized_leaves_the_random_numbers_of_the_caller_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    with uninitialized():
        nn.Linear(500, 500)
        nn.Linear(5, 5)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    "draw",
    [
        lambda value: nn.init.normal_(value, std=0.02),
        lambda value: nn.init.uniform_(value, -1, 1),
        nn.init.kaiming_uniform_,
        nn.init.xavier_uniform_,
        nn.init.zeros_,
    ],
    ids=["normal", "uniform", "kaiming", "xavier", "zeros"],
)
def test_large_parameters_are_left_as_they_are_and_small_ones_drawn(draw: Any) -> None:
    large, small = nn.Parameter(torch.full((300, 300), 3.0)), nn.Parameter(torch.full((20, 20), 3.0))
    with torch.no_grad(), uninitialized():
        draw(large)
        draw(small)
    assert bool((large == 3).all())
    assert not bool((small == 3).any())
    with torch.no_grad():
        draw(large)  # outside, all is as ever
    assert not bool((large == 3).any())


@pytest.mark.parametrize("bounds", [(-2.0, 2.0), (0.03, 0.05)], ids=["wide", "narrow"])
def test_drawing_until_all_lies_in_bounds_ends_whatever_was_in_memory(
    bounds: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch draws a truncated normal distribution by rejection: into fresh memory, until nothing is out of bounds."""
    rounds, empty_like, where = [0], torch.empty_like, torch.where

    def counted(*args: Any) -> Tensor:
        rounds[0] += 1
        assert rounds[0] < 100, "it goes on for ever"
        return where(*args)

    value = nn.Parameter(torch.full((300, 300), 1e9))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **options: empty_like(*args, **options).fill_(1e9))
    monkeypatch.setattr(torch, "where", counted)
    with uninitialized():
        nn.init.trunc_normal_(value, std=0.02, a=bounds[0], b=bounds[1])
        nn.init.orthogonal_(nn.Parameter(torch.empty(300, 300)))


def test_what_is_computed_is_computed_also_while_building() -> None:
    """Only initial values are left out: buffers and constants of any size are what the library makes them."""
    with uninitialized():
        mask = torch.empty(300, 300).fill_(float("-inf")).triu_(1)
        steps = torch.linspace(0, 1, 2**17).mul_(2)
        ones = nn.LayerNorm(8).weight
    assert bool(torch.isinf(mask[0, 1:]).all())
    assert float(mask.diagonal().abs().sum()) == 0
    assert float(steps[-1]) == 2
    assert bool((ones == 1).all())


def test_it_can_be_asked_whether_values_mean_nothing_yet() -> None:
    assert not is_uninitialized()
    with uninitialized():
        assert is_uninitialized()
        with uninitialized():
            pass
        assert is_uninitialized()
    with pytest.raises(RuntimeError, match="stop"), uninitialized():
        raise RuntimeError("stop")
    assert not is_uninitialized()


MAKE = """
import sys
from pathlib import Path
import open_clip, torch, transformers
from safetensors.torch import save_file
from clipkit.models.folder import save_model
from clipkit.models.model import Model
from clipkit.models.open_clip_model import open_clip_model
from clipkit.models.tokenizers import clip_tokenizer
from clipkit.models.weights import uninitialized

folder, block = Path(sys.argv[1]), 0.04 * torch.rand(2**20) - 0.02

def drawn(model):
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(block.repeat(value.numel() // 2**20 + 1)[: value.numel()].view(value.shape))
    return model

with uninitialized():
    model = open_clip.create_model("ViT-B-32-quickgelu")
state = {name: value.contiguous() for name, value in drawn(model).state_dict().items()}
save_file(state, folder / "weights.safetensors")
torch.save(state, folder / "weights.pt")
del state, model
name = f"ViT-B-32-quickgelu/{folder / 'weights.safetensors'}"
save_model(Model(open_clip_model(name)), folder / "model")
with uninitialized():
    model = transformers.CLIPModel(transformers.CLIPConfig())
drawn(model).save_pretrained(folder / "whole")
clip_tokenizer().save_pretrained(folder / "whole")
transformers.CLIPImageProcessor().save_pretrained(folder / "whole")
"""

# The peak is asked of the kernel for this process alone: ru_maxrss begins at that of the process that started it.
LOAD = """
import json, sys
import clipkit, clipkit.models.folder, clipkit.models.open_clip_model, clipkit.models.transformers_clip
import open_clip, timm
from transformers import AutoImageProcessor, AutoTokenizer, CLIPImageProcessor, CLIPModel, CLIPTokenizer

def memory(key):
    with open("/proc/self/status") as opened:
        return next(int(line.split()[1]) * 1024 for line in opened if line.startswith(key))

before = memory("VmRSS:")
model = clipkit.load(sys.argv[1])
touched = sum(float(value.detach().sum()) for value in model.encoder.parameters())  # a mapped file counts when read
print(json.dumps({"used": memory("VmHWM:") - before, "touched": touched}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same 150 million weights as a model folder, a folder of transformers, and two files of open_clip."""
    folder = tmp_path_factory.mktemp("large")
    done = subprocess.run([sys.executable, "-c", MAKE, str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    yield folder
    for file in [*folder.rglob("*.safetensors"), *folder.rglob("*.pt")]:
        file.unlink()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak of memory")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("{}/model", "model/model.safetensors"),
        ("hf:{}/whole", "whole/model.safetensors"),
        ("open_clip:ViT-B-32-quickgelu/{}/weights.safetensors", "weights.safetensors"),
        ("open_clip:ViT-B-32-quickgelu/{}/weights.pt", "weights.pt"),
    ],
    ids=["folder", "transformers", "open_clip_safetensors", "open_clip_pickle"],
)
def test_loading_takes_little_more_memory_than_the_file(large: Path, name: str, file: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOAD, name.format(large)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found, size = json.loads(re.findall(r"^{.*}$", done.stdout, re.M)[-1]), (large / file).stat().st_size
    assert size > 600e6
    assert found["used"] > 0.95 * size  # else it was not the weights that were measured
    assert found["used"] < 1.3 * size, f"{found['used'] / size:.2f} times the file"
