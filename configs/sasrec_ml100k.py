"""SASRec on MovieLens-100K: few users with long histories, a small catalogue.

    python scripts/prepare.py --input=movielens-100k --output=data/ml100k
    python scripts/train.py --config=configs/sasrec_ml100k.py --data=data/ml100k --workdir=DIR

Expected, leave-last-out, seen items masked, one seed: test ndcg@10 0.125, recall@10 0.230
(validation 0.130), in under 5 minutes on 2 CPU cores. With 943 users the standard error of ndcg@10
is 0.006.
"""

from jaxrec.data import SequenceData
from jaxrec.evaluation import EvaluationConfig
from jaxrec.models import sasrec
from jaxrec.objectives import FullSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.training import ExperimentConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    """Returns the experiment."""
    return ExperimentConfig(
        data=SequenceData(max_len=100, targets="packed", row_len=128),
        model=sasrec.Config(
            max_len=100,
            block="post_norm",
            positions="rotary",
            dropout=0.3,
            attention_dropout=0.3,
        ),
        objective=FullSoftmax(),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        training=TrainingConfig(epochs=50, batch_size=8, evaluate_epochs=5, average=0.999),
        evaluation=EvaluationConfig(ks=(10, 20)),
    )
