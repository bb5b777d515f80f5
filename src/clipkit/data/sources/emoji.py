"""The embedded set: 826 concepts (animals, food, places, activities, objects) drawn in up to four styles.

Run: python -m clipkit.train data=emoji

Training pictures are Noto, test pictures Fluent 3D: the model meets another artist's hand. `test/unseen` holds 120
concepts that training never shows. See `data/emoji/build.py` for how the archive is made and split.
"""

import csv
import io
import json
from pathlib import Path

from clipkit.data.images import ZipReader
from clipkit.data.records import Record, Records

__all__ = ["emoji"]

ARCHIVE = Path(__file__).parents[1] / "emoji" / "emoji.zip"


def emoji(archive: str | Path = ARCHIVE) -> Records:
    """The records of the archive. Classes are the 48 sub-groups of Unicode's table ("animal bird", "food fruit")."""
    reader = ZipReader(archive)
    concepts = {entry["concept"]: entry for entry in json.loads(reader.read("concepts.json"))}
    class_names = sorted({entry["subgroup"] for entry in concepts.values()})
    index = {name: number for number, name in enumerate(class_names)}
    records = []
    for row in csv.DictReader(io.StringIO(reader.read("records.csv").decode())):
        if row["split"] == "unused":
            continue
        concept = concepts[row["concept"]]
        label, full = concept["label"], ", ".join([concept["label"], *concept["tags"]])
        records.append(
            Record(
                image=row["image"],
                captions=(label, full, f"a picture of {label}") if row["split"] == "train" else (full,),
                label=index[concept["subgroup"]],
                split=row["split"],
                subset=row["subset"],
                group=row["concept"],
            )
        )
    names = [name.replace("-", " ") for name in class_names]
    return Records.from_records(records, reader=reader, class_names=names, name="emoji")
