"""CMU-MOSI, CMU-MOSEI and CH-SIMS: the `label.csv` that MMSA distributes, a score per clip.

    video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode

The unimodal labels are filled for CH-SIMS alone. The file comes with MMSA's download and with
nothing else (MMSA#7); its polarity-only text copies have no score and cannot be read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from suture.data.tasks.reading import finished, label, number, table
from suture.data.tasks.record import Record

MODES = ("train", "valid", "test")


def read(
    files: Sequence[Path], *, mode: str | None = None, low: float = -3, high: float = 3
) -> list[Record]:
    """Records of one split (`mode`: train, valid or test; all if left out) with a score from `low`
    to `high` as gold; cluster: the video.

    Errors: E352 columns, E353 another mode, E358 a score that is none or out of range.
    """
    records = []
    for file in files:
        for n, row in table(file, ("video_id", "clip_id", "text", "label", "mode")):
            its = label(row["mode"].strip(), MODES, file, n, what="mode")
            if mode is not None and its != mode:
                continue
            one = {
                key: number(row[key], file, n, low=low, high=high)
                for key in ("label_T", "label_A", "label_V")
                if row.get(key, "").strip()
            }
            records.append(
                Record(
                    id=f"{row['video_id']}_{row['clip_id']}",
                    text=row["text"],
                    gold=number(row["label"], file, n, low=low, high=high),
                    cluster=row["video_id"],
                    meta=one,
                )
            )
    return finished(records, files)
