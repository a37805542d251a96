"""Recommends items to users of a dataset, or after a history of your own.

python scripts/recommend.py --workdir=runs/a --user=196 -k 10
"""

import numpy as np
from _main import run
from _run import dataset_of
from absl import flags

from jaxrec.data.batches import fields_read
from jaxrec.evaluation import requests_for
from jaxrec.training import load_trained
from jaxrec.training.known import known_rows
from jaxrec.typing import UserError

flags.DEFINE_string("workdir", None, "Directory of a run that scripts/train.py made.")
flags.DEFINE_string("data", None, "Dataset directory; the one of the training run when not said.")
flags.DEFINE_multi_string("user", [], "User id as in the log; may be repeated.")
flags.DEFINE_list(
    "history", [], "Item ids as in the log, oldest first: recommends what comes after them."
)
flags.DEFINE_integer("k", 10, "How many items.", lower_bound=1)
flags.DEFINE_integer("step", None, "Step of the checkpoint; the best one when not said.")
flags.DEFINE_bool("mask_seen", True, "Leave out items that are in the history.")
flags.DEFINE_integer("shown", 5, "How many items of the history to print.", lower_bound=0)

FLAGS = flags.FLAGS


def main() -> None:
    """Prints the end of each history and the recommended items, best first."""
    if not FLAGS.workdir or not (FLAGS.user or FLAGS.history):
        raise UserError("say which run and for whom: --workdir=DIR --user=ID or --history=ID,ID.")
    dataset = dataset_of(FLAGS.workdir, FLAGS.data)
    users = [dataset.user_index(user) for user in FLAGS.user]
    histories = [dataset.history(user) for user in users]
    names = [f"user {user}" for user in FLAGS.user]
    if FLAGS.history:
        users.append(0)
        histories.append(np.array([dataset.item_index(item) for item in FLAGS.history]))
        names.append("your history")
    experiment, params, _ = load_trained(FLAGS.workdir, dataset, step=FLAGS.step)
    knows_users = "users" in fields_read(experiment.config.data)
    if FLAGS.history and knows_users:
        raise UserError(
            "this model knows users by their row of a table and cannot read --history. Use --user."
        )
    known = known_rows(experiment, params)
    shown = [history[known["item"][history]] for history in histories]
    for name, user, history in zip(names, users, shown, strict=True):
        if knows_users and not known["user"][user]:
            raise UserError(
                f"{name} has no training event, so the model knows nothing of this user. Choose "
                "another user, or train on data that has events of this one."
            )
        if not knows_users and not len(history):
            raise UserError(
                f"the model knows no item of the history of {name}: none of them was trained. "
                "Choose another user, or say --history=ID,ID."
            )
    requests = requests_for(histories, np.array(users), dataset.num_items)
    recommended = experiment.recommender(params).recommend(
        requests, FLAGS.k, mask_seen=FLAGS.mask_seen
    )
    for name, history, items in zip(names, histories, recommended, strict=True):
        print(name)
        if FLAGS.shown:
            print("  watched:     " + " · ".join(dataset.item_names(history[-FLAGS.shown :])))
        print("  recommended: " + " · ".join(dataset.item_names(items[items > 0])))


if __name__ == "__main__":
    run(main)
