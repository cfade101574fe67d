"""One reader per public format: `read(files, **options) -> list[Record]`.

`files` belong to one split. Options of a reader are keyword arguments; the table `datasets.yaml`
names them. Errors come with file and line: E303 not UTF-8, E352 to E360 as in docs/errors.md.
"""
