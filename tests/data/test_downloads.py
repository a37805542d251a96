"""Public data sets from small archives of the same form as the real ones."""

import gzip
import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from jaxrec.data import fetch, prepare
from jaxrec.data.downloads import NAMES
from jaxrec.typing import UserError

U_ITEM = (
    "1|Toy Story (1995)|01-Jan-1995||http://u|0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "2|Am\xe9lie|01-Jan-2001||http://u|0|0|0|0|0|0|0|0|0|0|0|0|0|0|1|0|0|0|0\n"
)
FILES = {
    "movielens-100k": {
        "u.data": "196\t1\t3\t881250949\n186\t2\t4\t891717742\n",
        "u.item": U_ITEM,
        "u.user": "196|49|M|writer|02139\n186|39|F|executive|00000\n",
    },
    "movielens-1m": {
        "ratings.dat": "196::1::3::881250949\n186::2::4::891717742\n",
        "movies.dat": "1::Toy Story (1995)::Animation|Children's|Comedy\n2::Am\xe9lie::Romance\n",
        "users.dat": "196::M::25::20::02139\n186::F::35::7::00000\n",
    },
    "movielens-20m": {
        "ratings.csv": "userId,movieId,rating,timestamp\n"
        "196,1,3.0,881250949\n186,2,4.0,891717742\n",
        "movies.csv": "movieId,title,genres\n1,Toy Story (1995),Animation|Children's|Comedy\n"
        "2,Am\xe9lie,Romance\n",
    },
}


def archive(directory: Path, name: str) -> Path:
    path = directory / f"{name}.zip"
    encoding = "utf-8" if name == "movielens-20m" else "latin-1"
    with zipfile.ZipFile(path, "w") as zipped:
        for file, text in FILES[name].items():
            zipped.writestr(f"ml/{file}", text.encode(encoding))
    return path


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_movielens_of_every_size_has_the_standard_columns(
    tmp_path: Path, name: str, unpacked: bool
) -> None:
    local = archive(tmp_path, name)
    if unpacked:
        with zipfile.ZipFile(local) as zipped:
            zipped.extractall(tmp_path / "unpacked")
        local = tmp_path / "unpacked"
    log = fetch(name, tmp_path, local=local)
    assert log.events.columns.tolist() == ["user_id", "item_id", "rating", "timestamp"]
    assert log.events.to_numpy().tolist() == [[196, 1, 3, 881250949], [186, 2, 4, 891717742]]
    assert log.items is not None
    assert log.items["title"].tolist() == ["Toy Story (1995)", "Amélie"]
    assert log.items["genres"].tolist() == ["Animation|Children's|Comedy", "Romance"]
    if log.users is not None:
        assert log.users["zip_code"].tolist() == ["02139", "00000"]
    assert log.paths == (() if unpacked else (local,))


def test_amazon_reviews_keep_text_ids(tmp_path: Path) -> None:
    path = tmp_path / "reviews_Beauty_5.json.gz"
    review = {"reviewerID": "A1", "asin": "0007", "overall": 5.0, "unixReviewTime": 1390953600}
    with gzip.open(path, "wt") as file:
        for more in ({"reviewText": "good\nvery", "helpful": [1, 2]}, {"helpful": [0, 0]}):
            file.write(json.dumps(review | more) + "\n")
    log = fetch("amazon-beauty", tmp_path, local=path)
    assert log.events.to_numpy().tolist() == [["A1", "0007", 5.0, 1390953600]] * 2
    assert log.items is None


def test_a_plain_table_stands_in_for_an_archive(tmp_path: Path) -> None:
    frame = pd.DataFrame({"user_id": ["01"], "item_id": ["x"], "timestamp": [3]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    log = fetch("amazon-beauty", tmp_path, local=tmp_path / "a.csv")
    pd.testing.assert_frame_equal(log.events, frame)
    data = prepare("amazon-beauty", tmp_path / "out", local=tmp_path / "a.csv")
    assert (data.times.tolist(), data.labels) == ([3], None)


def test_a_copy_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ml.zip").write_bytes(b"no archive")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as zipped:
        zipped.writestr("readme.txt", "hello")
    for file, message in (("ml.zip", "does not hold"), ("other.zip", "no file 'u.data'")):
        with pytest.raises(UserError, match=message):
            fetch("movielens-100k", tmp_path, local=tmp_path / file)
    with pytest.raises(UserError, match="does not exist"):
        fetch("movielens-100k", tmp_path, local=tmp_path / "absent.zip")
    with pytest.raises(UserError, match="Did you mean 'movielens-100k'"):
        fetch("movielens100k", tmp_path)


def test_names_prepare_with_times_labels_and_titles(tmp_path: Path) -> None:
    local = archive(tmp_path, "movielens-100k")
    data = prepare("movielens-100k", tmp_path / "out", local=local)
    assert data.user_vocabulary["id"].tolist() == ["186", "196"]
    assert data.user_vocabulary["occupation"].tolist() == ["executive", "writer"]
    assert data.item_names([1, 2]) == ["Toy Story (1995)", "Amélie"]  # type: ignore[arg-type]
    assert data.labels is not None
    assert data.times.tolist() == [891717742 * 10**9, 881250949 * 10**9]
    assert [source["name"] for source in data.manifest.sources] == ["movielens-100k.zip"]
    with pytest.raises(UserError, match="named source"):
        prepare(data.user_vocabulary, tmp_path / "other", local=local)


def test_every_movielens_has_a_published_checksum() -> None:
    from jaxrec.data.downloads import _DATA

    assert [name for name in NAMES if _DATA[name].md5 is None] == ["amazon-beauty"]
