"""Which captions a picture has: its own, or sentences made from its class name."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from clipkit.data.records import Records
from clipkit.errors import UserError
from clipkit.templates import fill_template

__all__ = ["caption_by_templates"]


def caption_by_templates(records: Records, templates: Sequence[str]) -> Records:
    """Give labelled pictures without captions one caption per template; others keep what they have."""
    missing = np.diff(records.caption_offsets) == 0
    if not missing.any():
        return records
    if (records.labels[missing] < 0).any():
        row = int(np.flatnonzero(missing & (records.labels < 0))[0])
        raise UserError(f"{records.name}: {records.image_name(row)} has neither a caption nor a class")
    captions = [
        [fill_template(template, records.class_names[int(label)]) for template in templates] if lacks else own
        for lacks, label, own in zip(missing, records.labels, records.table["captions"].to_pylist(), strict=True)
    ]
    column = pa.array(captions, pa.large_list(pa.large_string()))
    index = records.table.column_names.index("captions")
    return replace(records, table=records.table.set_column(index, "captions", column))
