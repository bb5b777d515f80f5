"""Build `emoji.zip`, the small picture–caption set that ships with clipkit, from pinned npm packages.

Run: python -m clipkit.data.emoji.build --out emoji.zip     (needs `npm` and `pip install resvg_py`)

One concept ("camel") is drawn in up to four styles: two generations of Noto, Fluent flat and Fluent 3D. Concepts are
joined on the slug of the CLDR label (Noto, Fluent flat) and on the hex code (Fluent 3D). Clock faces (sub-group
`time`) differ only in their hands and are left out.

Fluent flat and Fluent 3D draw the same outline, so a picture of one is a near copy of the other. The split is
therefore by concept: no concept has Fluent pictures on two sides. `train` holds Noto only, `val` both Fluent styles
of its concepts, `test` Fluent 3D alone.
"""

import argparse
import csv
import io
import json
import random
import re
import subprocess
import tarfile
import tempfile
import unicodedata
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "noto_v1": "@iconify-json/noto-v1@1.2.5",
    "fluent_flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent_3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "emojibase": "emojibase-data@17.0.0",
}
GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
LEFT_OUT = "time"  # the sub-group of clock faces
LAST_VERSION = 16  # newer emoji are drawn in one style only
NUM_UNSEEN, NUM_VALIDATION, SPLIT_SEED = 120, 100, 0
SIZE, QUALITY = 96, 80
EPOCH = (2024, 1, 1, 0, 0, 0)  # fixed time stamps: the same pixels give the same archive


def slug(label: str) -> str:
    """The form in which icon sets name a CLDR label: "piñata" -> "pinata", "man’s shoe" -> "mans-shoe"."""
    ascii_label = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_label.replace("'", "")).strip("-")


def hex_key(hexcode: str) -> str:
    """A hex code without variation selectors, which packages write or leave out as they like."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def fetch(package: str, folder: Path) -> Path:
    """Download one npm package with `npm pack` and unpack it; returns its folder."""
    name = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()
    target = folder / name.removesuffix(".tgz")
    with tarfile.open(folder / name) as archive:
        archive.extractall(target, filter="data")
    return target / "package"


def svg_of(icons: dict[str, Any], name: str) -> str | None:
    """The SVG text of one Iconify icon, or None where the set does not draw it. Flipped aliases are left out."""
    alias = icons.get("aliases", {}).get(name)
    icon = icons["icons"].get(alias["parent"] if alias and "hFlip" not in alias else name)
    if icon is None:
        return None
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
    )


def as_webp(data: bytes, quality: int = QUALITY) -> bytes:
    """A picture file, with transparency or not, on white at SIZE × SIZE pixels as WebP."""
    from PIL import Image

    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    out = io.BytesIO()
    canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(out, "WEBP", quality=quality, method=6)
    return out.getvalue()


def draw(svg: str) -> bytes:
    import resvg_py

    return as_webp(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIZE, height=4 * SIZE)))


def read_concepts(emojibase: Path) -> list[dict[str, Any]]:
    """Every candidate concept of the five groups, sorted by slug."""
    names = json.loads((emojibase / "meta/groups.json").read_text())
    concepts = []
    for entry in json.loads((emojibase / "en/data.json").read_text()):
        if "group" not in entry or entry["version"] > LAST_VERSION:
            continue
        group, subgroup = names["groups"][str(entry["group"])], names["subgroups"][str(entry["subgroup"])]
        if group in GROUPS and subgroup != LEFT_OUT:
            label = entry["label"].replace("’", "'")
            tags = [tag for tag in entry.get("tags", []) if tag.lower() != label.lower()]
            concepts.append(
                {
                    "concept": slug(entry["label"]),
                    "label": label,
                    "tags": tags,
                    "group": group,
                    "subgroup": subgroup,
                    "hexcode": entry["hexcode"],
                }
            )
    return sorted(concepts, key=lambda concept: concept["concept"])


def draw_all(concepts: list[dict[str, Any]], folders: dict[str, Path]) -> dict[tuple[str, str], bytes]:
    """WebP bytes by (style, concept), for the concepts that Noto draws."""
    icon_sets = {s: json.loads((folders[s] / "icons.json").read_text()) for s in ("noto", "noto_v1", "fluent_flat")}
    assets = {hex_key(file.stem): file for file in (folders["fluent_3d"] / "assets").glob("*.webp")}
    pictures = {}
    for concept in concepts:
        name = concept["concept"]
        if svg_of(icon_sets["noto"], name) is None:
            continue
        for style, icons in icon_sets.items():
            svg = svg_of(icons, name)
            if svg is not None:
                pictures[style, name] = draw(svg)
        file = assets.get(hex_key(concept["hexcode"]))
        if file is not None:
            pictures["fluent_3d", name] = as_webp(file.read_bytes())
    return pictures


def split(pictures: dict[tuple[str, str], bytes]) -> dict[str, list[str]]:
    """The fixed lists: 120 concepts never trained on, 100 for validation; both have Fluent pictures."""
    both = sorted(name for style, name in pictures if style == "fluent_3d" and ("fluent_flat", name) in pictures)
    random.Random(SPLIT_SEED).shuffle(both)
    unseen, validation = both[:NUM_UNSEEN], both[NUM_UNSEEN : NUM_UNSEEN + NUM_VALIDATION]
    return {"unseen": sorted(unseen), "validation": sorted(validation)}


def place(style: str, name: str, lists: dict[str, list[str]]) -> tuple[str, str]:
    """(split, subset) of one picture; ("unused", "") keeps it in the archive, outside every split."""
    unseen, validation = name in lists["unseen"], name in lists["validation"]
    if style in ("noto", "noto_v1"):
        return ("unused", "") if unseen else ("train", "seen")
    if validation:
        return "val", "seen"
    if style == "fluent_3d":
        return "test", "unseen" if unseen else "seen"
    return "unused", ""


def build(out: Path, folders: dict[str, Path]) -> None:
    """Draw every picture, choose the splits and write the archive to `out`."""
    concepts = read_concepts(folders["emojibase"])
    pictures = draw_all(concepts, folders)
    drawn = {name for _, name in pictures}
    lists = split(pictures)
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["image", "concept", "style", "split", "subset"])
    for style, name in sorted(pictures):
        writer.writerow([f"{style}/{name}.webp", name, style, *place(style, name, lists)])
    versions = {name: metadata.version(name) for name in ("resvg_py", "Pillow")}
    about = {"packages": PACKAGES, "versions": versions, "size": SIZE, "webp_quality": QUALITY}
    texts = {
        "about.json": json.dumps(about, indent=1),
        "concepts.json": json.dumps([c for c in concepts if c["concept"] in drawn], indent=0, ensure_ascii=False),
        "records.csv": rows.getvalue(),
        "splits.json": json.dumps(lists, indent=0),
    }
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), text, zipfile.ZIP_DEFLATED)
        for style, name in sorted(pictures):
            archive.writestr(zipfile.ZipInfo(f"{style}/{name}.webp", EPOCH), pictures[style, name], zipfile.ZIP_STORED)
    print(f"{out}: {len(drawn)} concepts, {len(pictures)} pictures, {out.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("emoji.zip"))
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        folders = {style: fetch(package, Path(folder)) for style, package in PACKAGES.items()}
        build(out, folders)


if __name__ == "__main__":
    main()
