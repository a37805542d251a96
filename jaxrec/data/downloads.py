"""Public data sets by name: where they are, their checksums and how their files are read.

MD5 sums of MovieLens are those that GroupLens publishes beside the archives. No checksum is
published for Amazon Beauty; that of the first download is kept and compared from then on.
"""

import contextlib
import dataclasses
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.json

from jaxrec.data.files import find_files
from jaxrec.data.readers import header, read
from jaxrec.data.recipe import choose
from jaxrec.data.transfer import download
from jaxrec.typing import UserError

EVENT_COLUMNS = ("user_id", "item_id", "rating", "timestamp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """A public data set in memory.

    Attributes:
      events: columns user_id, item_id, rating and timestamp (seconds since 1970), in file order.
      items: columns item_id, title and genres (joined by "|"), or None.
      users: columns user_id and more, or None.
      paths: the files that it was read from.
    """

    events: pd.DataFrame
    items: pd.DataFrame | None
    users: pd.DataFrame | None
    paths: tuple[Path, ...]


type Parts = tuple[pd.DataFrame, pd.DataFrame | None, pd.DataFrame | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicData:
    """Where a public data set is.

    Attributes:
      url: of the archive.
      md5: the published checksum, or None where there is none.
      parse: reads a copy: the archive, its unpacked directory or its file of events.
    """

    url: str
    md5: str | None
    parse: Callable[[Path], Parts]


def fetch(name: str, directory: str | Path, local: str | Path | None = None) -> Log:
    """Gets a public data set by name.

    Args:
      name: one of `NAMES`.
      directory: where downloads are kept. A good copy there is used without the network.
      local: a copy instead of the network: the archive, its unpacked directory, or a .csv, .tsv or
        .parquet file with the columns `EVENT_COLUMNS` (rating and timestamp may be absent).

    Raises:
      UserError: for an unknown name, a failed download, or a copy that does not hold the data.
    """
    choose("name", name, NAMES)
    data = _DATA[name]
    if local is None:
        path = download(data.url, Path(directory) / data.url.rpartition("/")[2], md5=data.md5)
    else:
        path = Path(local)
        if not path.exists():
            raise UserError(f"the local copy {str(path)!r} of {name} does not exist.")
        if path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv", ".parquet")):
            return Log(events=_plain(path), items=None, users=None, paths=(path,))
    try:
        events, items, users = data.parse(path)
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        KeyError,
        ValueError,
        pa.ArrowException,
    ) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} does not hold {name} ({error}). Get it from {data.url}.") from None
    paths = tuple(find_files(path)) if path.is_file() else ()
    return Log(events=events, items=items, users=users, paths=paths)


def default_directory() -> Path:
    """Where downloads are kept when nothing else is said."""
    return Path.home() / ".cache" / "jaxrec"


def _plain(path: Path) -> pd.DataFrame:
    names = header(path)
    columns = [c for c in EVENT_COLUMNS if c in names or c in ("user_id", "item_id")]
    events = read(path, columns)
    for name in set(columns) - {"user_id", "item_id"}:
        # Texts that are no numbers stay: they may be dates, and a mistake is named later.
        with contextlib.suppress(ValueError):
            events[name] = pd.to_numeric(events[name])
    return events


def _member(path: Path, name: str) -> io.BytesIO:
    """Reads the file `name` of an archive or of an unpacked directory, wherever it lies in it."""
    if path.is_dir():
        contents = (found.read_bytes() for found in sorted(path.rglob(name)))
        content = next(contents, None)
    else:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.namelist() if m.rpartition("/")[2] == name]
            content = archive.read(members[0]) if members else None
    if content is None:
        raise UserError(f"{path} holds no file {name!r}.")
    return io.BytesIO(content)


_ML100K_GENRES = [
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance"),
    *("Sci-Fi", "Thriller", "War", "Western"),
]


def _movielens_100k(path: Path) -> Parts:
    events = pd.read_csv(_member(path, "u.data"), sep="\t", names=list(EVENT_COLUMNS))
    names = ["item_id", "title", "date", "video", "url", *_ML100K_GENRES]
    movies = pd.read_csv(_member(path, "u.item"), sep="|", names=names, encoding="latin-1")
    flags = movies[_ML100K_GENRES].to_numpy() > 0
    words = np.where(flags, np.char.add(np.array(_ML100K_GENRES), "|"), "")
    genres = pd.DataFrame(words, dtype="str").sum(axis=1).str.rstrip("|")
    names = ["user_id", "age", "gender", "occupation", "zip_code"]
    users = pd.read_csv(_member(path, "u.user"), sep="|", names=names, dtype={"zip_code": "str"})
    return events, movies[["item_id", "title"]].assign(genres=genres), users


def _movielens_1m(path: Path) -> Parts:
    # "1::1193::5::978300760" read with ":" has an empty field after each value.
    fields = pd.read_csv(_member(path, "ratings.dat"), sep=":", header=None, usecols=[0, 2, 4, 6])
    events = fields.set_axis(list(EVENT_COLUMNS), axis=1)
    movies = pd.read_csv(
        _member(path, "movies.dat"),
        sep="::",
        engine="python",
        encoding="latin-1",
        names=["item_id", "title", "genres"],
    )
    fields = pd.read_csv(
        _member(path, "users.dat"),
        sep=":",
        header=None,
        usecols=[0, 2, 4, 6, 8],
        dtype={8: "str"},
    )
    users = fields.set_axis(["user_id", "gender", "age", "occupation", "zip_code"], axis=1)
    return events, movies, users


def _movielens_csv(path: Path) -> Parts:
    renamed = {"userId": "user_id", "movieId": "item_id"}
    events = pd.read_csv(_member(path, "ratings.csv")).rename(columns=renamed)
    items = pd.read_csv(_member(path, "movies.csv")).rename(columns=renamed)
    return events[list(EVENT_COLUMNS)], items[["item_id", "title", "genres"]], None


_AMAZON_FIELDS = {
    "reviewerID": pa.string(),
    "asin": pa.string(),
    "overall": pa.float32(),
    "unixReviewTime": pa.int64(),
}


def _amazon(path: Path) -> Parts:
    table = pa.json.read_json(
        path,
        read_options=pa.json.ReadOptions(block_size=8 << 20),
        parse_options=pa.json.ParseOptions(
            explicit_schema=pa.schema(_AMAZON_FIELDS), unexpected_field_behavior="ignore"
        ),
    )
    events = table.select(list(_AMAZON_FIELDS)).rename_columns(list(EVENT_COLUMNS)).to_pandas()
    return events, None, None


def _movielens(size: str, md5: str, parse: Callable[[Path], Parts]) -> PublicData:
    url = f"https://files.grouplens.org/datasets/movielens/ml-{size}.zip"
    return PublicData(url=url, md5=md5, parse=parse)


_DATA = {
    "movielens-100k": _movielens("100k", "0e33842e24a9c977be4e0107933c0723", _movielens_100k),
    "movielens-1m": _movielens("1m", "c4d9eecfca2ab87c1945afe126590906", _movielens_1m),
    "movielens-20m": _movielens("20m", "cd245b17a1ae2cc31bb14903e1204af3", _movielens_csv),
    "movielens-25m": _movielens("25m", "6b51fb2759a8657d3bfcbfc42b592ada", _movielens_csv),
    "amazon-beauty": PublicData(
        url="http://snap.stanford.edu/data/amazon/productGraph/categoryFiles/reviews_Beauty_5.json.gz",
        md5=None,
        parse=_amazon,
    ),
}
NAMES = tuple(_DATA)
