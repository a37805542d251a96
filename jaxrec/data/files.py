"""Which files a name, a glob or a directory stands for, and of what kind each of them is."""

import glob
from collections.abc import Sequence
from pathlib import Path

from jaxrec.typing import UserError

# What separates the cells of a text file by its ending; "" where that must be said.
SEPARATORS = {
    **{".csv": ",", ".tsv": "\t", ".tab": "\t", ".inter": "\t", ".item": "\t", ".user": "\t"},
    **{".txt": "", ".dat": "", ".data": ""},
}
PARQUET = (".parquet", ".pq")
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_LOGS_ONLY = (".item", ".user")  # in a directory of atomic files, these hold no events
_OTHERS = {
    ".xlsx": "Save the sheet as CSV.",
    ".xls": "Save the sheet as CSV.",
    ".zip": "Unpack it.",
    ".xz": "Unpack it.",
    ".json": "Convert it: pandas.read_json(FILE, lines=True).to_parquet(NEW).",
    ".jsonl": "Convert it: pandas.read_json(FILE, lines=True).to_parquet(NEW).",
    ".ndjson": "Convert it: pandas.read_json(FILE, lines=True).to_parquet(NEW).",
}


def find_files(inputs: str | Path | Sequence[str | Path]) -> list[Path]:
    """Returns the files that names, globs and directories stand for, without repeats.

    A name that is there is itself, whatever characters it has; only what is not there is a glob. A
    directory stands for the files of a known kind in it and below it, in order of their paths.

    Raises:
      UserError: when one of them matches no file.
    """
    return find_all(inputs)[0]


def find_all(inputs: str | Path | Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """Returns what `find_files` does, and the files of directories that were passed over."""
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not given:
        raise UserError("no input was given. Name at least one file.")
    found: dict[Path, None] = {}
    skipped: dict[Path, None] = {}
    for name in given:
        path = Path(name).expanduser()
        paths = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        files = []
        for one in paths:
            if one.is_dir():
                read, others = _in_directory(one)
                files += read
                skipped |= dict.fromkeys(others)
            else:
                files.append(one)
        if not files:
            raise UserError(f"no file matches {str(name)!r}. Check the path.")
        found |= dict.fromkeys(files)
    return list(found), [path for path in skipped if path not in found]


def kind_of(path: Path) -> str | None:
    """Returns the ending that says what a file holds, such as ".csv", or None for no known one."""
    name = path.name.lower()
    name = name.removesuffix(_compressed(path))
    return next((end for end in (*SEPARATORS, *PARQUET) if name.endswith(end)), None)


def is_parquet(path: Path) -> bool:
    """Whether a file's name says Parquet and not text."""
    return kind_of(path) in PARQUET


def compression_of(path: Path) -> str | None:
    """Returns how a text file is compressed, in Arrow's words."""
    return COMPRESSIONS.get(_compressed(path))


def unknown_kind(path: Path) -> UserError:
    """Returns the one sentence for a file whose ending says nothing."""
    end = next((end for end in _OTHERS if path.name.lower().endswith(end)), None)
    advice = _OTHERS[end] if end else "For text with another ending, say its separator."
    return UserError(
        f"{path} is of no known format. Wanted: .csv, .tsv, .inter (or these with .gz, .bz2, "
        f".zst), .parquet. {advice}"
    )


def _compressed(path: Path) -> str:
    return next((end for end in COMPRESSIONS if path.name.lower().endswith(end)), "")


def _in_directory(directory: Path) -> tuple[list[Path], list[Path]]:
    """Returns the files of a known kind below a directory, and the others that are not hidden."""
    paths = sorted(
        path
        for path in directory.rglob("*")
        if path.is_file() and not _is_hidden(path.relative_to(directory))
    )
    kinds = {path: kind_of(path) for path in paths}
    atomic = ".inter" in kinds.values()
    made = {path.parent for path in paths if path.name == "manifest.json"}  # prepared datasets
    read = [
        path
        for path, kind in kinds.items()
        if kind and not (atomic and kind in _LOGS_ONLY) and not made & set(path.parents)
    ]
    return read, [path for path in paths if path not in read]


def _is_hidden(path: Path) -> bool:
    """Hidden are the names with a dot, and by the custom of Hadoop those with an underscore."""
    return any(part.startswith((".", "_")) for part in path.parts)
