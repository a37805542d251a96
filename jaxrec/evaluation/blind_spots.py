"""What an evaluation cannot see: targets that no list can hold, users that are left out."""

import dataclasses

import numpy as np

from jaxrec.data.dataset import Dataset
from jaxrec.evaluation.requests import Requests

_CHUNK = 1 << 22  # events of histories looked at together


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlindSpots:
    """What the figures of an evaluation do not tell by themselves.

    Attributes:
      num_users: users measured.
      without_history: users with targets that are left out because they have no history.
      num_targets: distinct targets of the users measured.
      masked_targets: those that are in the user's own history, which is not recommended again.
      cold_targets: those that never occur in training.
      left_out_items: whether items that training never saw are left out of the lists.
      unknown_users: users that got no list, as the recommender knows nothing of them.
      later_histories: users whose history holds events later than one of their targets.
    """

    num_users: int
    without_history: int
    num_targets: int
    masked_targets: int
    cold_targets: int
    left_out_items: bool = False
    unknown_users: int = 0
    later_histories: int = 0

    @property
    def nothing_to_find(self) -> bool:
        """Whether no list can hold a target, so that each metric of ranking must be 0."""
        impossible = self.masked_targets == self.num_targets
        impossible |= self.left_out_items and self.cold_targets == self.num_targets
        return bool(impossible or self.unknown_users == self.num_users)

    def sentences(self) -> list[str]:
        """Returns what to say beside the figures; nothing where there is nothing to say."""
        targets, users = f"of {self.num_targets:,} targets", f"of {self.num_users:,} users"
        cold = "are left out of every list and" if self.left_out_items else "can hardly be found;"
        later = (
            f"{users} have histories with events later than their targets, as the split is not one "
            "by time: this is no forecast"
        )
        counted = (
            (self.without_history, "users with a target are left out: they have no history"),
            (
                self.masked_targets,
                f"{targets} were seen before and cannot be found, as seen items are masked "
                "(evaluation.mask_seen); they count as misses",
            ),
            (self.cold_targets, f"{targets} never occur in training: they {cold} count as misses"),
            (
                self.unknown_users,
                f"{users} got no list, as nothing of them was trained on; they count as misses",
            ),
            (self.later_histories, later),
        )
        found = [f"{count:,} {text}" for count, text in counted if count]
        if self.nothing_to_find:
            found.insert(0, "no target can be found at all, so every metric of ranking is 0")
        return found


def blind_spots(
    requests: Requests,
    dataset: Dataset,
    *,
    mask_seen: bool,
    recommended: np.ndarray,
    known_items: np.ndarray | None = None,
) -> BlindSpots:
    """Counts what the evaluation of requests cannot see.

    Args:
      requests: what is asked.
      dataset: where they come from.
      mask_seen: whether items of the history are not recommended.
      recommended: (U, K) item indices, 0 where there is none.
      known_items: (num_items + 1,) bool, the items that may be in lists; None means all.
    """
    # A model may know items that this training has no event of: by content, or from an earlier run.
    known = dataset.item_counts > 0 if known_items is None else known_items
    return BlindSpots(
        num_users=len(requests),
        without_history=requests.without_history,
        num_targets=len(requests.target_items),
        masked_targets=_seen_targets(requests) if mask_seen else 0,
        cold_targets=int((~known[requests.target_items]).sum()),
        left_out_items=known_items is not None,
        unknown_users=int((recommended == 0).all(axis=1).sum()),
        later_histories=requests.later_histories,
    )


def _seen_targets(requests: Requests) -> int:
    """Counts the targets that are in the history of their user."""
    rows, width = np.arange(len(requests)), requests.num_items + 1
    targets = np.repeat(rows, requests.num_targets) * width + requests.target_items
    if not len(targets):
        return 0
    seen = np.zeros(len(targets), bool)
    for start in range(0, len(requests.history_items), _CHUNK):
        events = np.arange(start, min(start + _CHUNK, len(requests.history_items)))
        owners = np.searchsorted(requests.history_offsets, events, side="right") - 1
        pairs = owners * width + requests.history_items[events]
        places = np.searchsorted(targets, pairs).clip(max=len(targets) - 1)
        seen[places[targets[places] == pairs]] = True
    return int(seen.sum())
