"""Loading a CLIP of 605 MB: time and peak memory, beside the libraries that made the files.

Run: python -m benchmarks.loading --repeats 5        (writes benchmarks/LOADING.md)
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# Each loads in a process of its own, after the imports, and reads every weight once: a mapped file counts when read.
MEASURE = """
import json, sys, time, logging
import open_clip, timm, transformers, clipkit
import clipkit.models.folder, clipkit.models.open_clip_model, clipkit.models.transformers_clip
from transformers import AutoImageProcessor, AutoTokenizer, CLIPImageProcessor, CLIPModel, CLIPTokenizer
logging.disable(logging.WARNING)

def memory(key):
    with open("/proc/self/status") as opened:
        return next(int(line.split()[1]) / 1024 for line in opened if line.startswith(key))

before, start = memory("VmRSS:"), time.perf_counter()
model = eval(sys.argv[1])
sum(float(value.detach().sum()) for value in model.parameters())
print(json.dumps({"s": time.perf_counter() - start, "mb": memory("VmHWM:") - before}))
"""

MAKE = """
import sys
from pathlib import Path
import open_clip, torch, transformers
from safetensors.torch import save_file
from clipkit.models.folder import save_model
from clipkit.models.model import Model
from clipkit.models.open_clip_model import open_clip_model
from clipkit.models.tokenizers import clip_tokenizer
folder = Path(sys.argv[1])
model = open_clip.create_model("ViT-B-32-quickgelu")
save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "weights.safetensors")
torch.save(model.state_dict(), folder / "weights.pt")
save_model(Model(open_clip_model(f"ViT-B-32-quickgelu/{folder / 'weights.pt'}")), folder / "ours")
for part in (transformers.CLIPModel(transformers.CLIPConfig()), clip_tokenizer(), transformers.CLIPImageProcessor()):
    part.save_pretrained(folder / "theirs")
"""

NAME = "open_clip:ViT-B-32-quickgelu/{}/weights"
CASES = {
    "clipkit.load, a model folder": "clipkit.load('{}/ours').encoder",
    "clipkit.load, open_clip:ARCH/FILE.safetensors": f"clipkit.load('{NAME}.safetensors').encoder",
    "open_clip, the same file": "open_clip.create_model('ViT-B-32-quickgelu', pretrained='{}/weights.safetensors')",
    "clipkit.load, open_clip:ARCH/FILE.pt": f"clipkit.load('{NAME}.pt').encoder",
    "open_clip, the same file (pt)": "open_clip.create_model('ViT-B-32-quickgelu', pretrained='{}/weights.pt')",
    "clipkit.load, hf:FOLDER": "clipkit.load('hf:{}/theirs').encoder",
    "transformers, the same folder": "CLIPModel.from_pretrained('{}/theirs')",
}


def measure(expression: str) -> dict[str, float]:
    """Seconds and megabytes of one load."""
    done = subprocess.run([sys.executable, "-c", MEASURE, expression], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measure every case in turn, several times, and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([sys.executable, "-c", MAKE, place], check=True, capture_output=True)
        size = Path(place, "weights.safetensors").stat().st_size / 2**20
        found: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
        for _ in range(repeats):
            for name, expression in CASES.items():
                found[name].append(measure(expression.format(place)))
                print(name, found[name][-1], flush=True)
    lines = [
        "# Loading a CLIP",
        "",
        f"`python -m benchmarks.loading --repeats {repeats}`: ViT-B/32 with QuickGELU, {size:.0f} MB of float32 "
        f"weights, on {platform.machine()} without a GPU. Each load is a process of its own, the cases take "
        "turns; medians. Peak is the resident memory above that after the imports, once every weight was read.",
        "",
        "| | seconds | peak MB | peak / file |",
        "|---|---|---|---|",
    ]
    for name, runs in found.items():
        seconds, peak = (statistics.median(run[key] for run in runs) for key in ("s", "mb"))
        lines.append(f"| {name} | {seconds:.2f} | {peak:.0f} | {peak / size:.2f} |")
    Path(__file__).with_name("LOADING.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
