"""Public data sets of opinions and feelings as records of one type.

record.py       the type
formats/        one reader per public format
datasets.yaml   which files of which format make a data set
datasets.py     the same as objects: read a split, see what is on disk
"""

from suture.data.tasks.record import Record, Turn

__all__ = ["Record", "Turn"]
