"""Biased matrix factorisation on the ratings of MovieLens-100K, split 80/20 at random.

    python scripts/prepare.py --input=movielens-100k --output=data/ml100k_ratings --split=random \
        --valid_fraction=0 --test_fraction=0.2
    python scripts/train.py --config=configs/mf_ml100k.py --data=data/ml100k_ratings --workdir=DIR

Expected: test rmse 0.910 (three seeds: 0.9106, 0.9097, 0.9110), in 15 seconds on 2 CPU cores.

l2 was chosen on a validation part (prepare with --valid_fraction=0.1): 0.05, 0.08, 0.1, 0.12 and
0.15 gave there 0.9449, 0.9265, 0.9204, 0.9190 and 0.9222.
"""

from jaxrec.data import PairData
from jaxrec.evaluation import EvaluationConfig
from jaxrec.models import matrix_factorization
from jaxrec.objectives import SquaredError
from jaxrec.optim import OptimizerConfig
from jaxrec.training import ExperimentConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    """Returns the experiment."""
    return ExperimentConfig(
        data=PairData(),
        model=matrix_factorization.Config(dim=64, init_std=0.1),
        objective=SquaredError(l2=0.12),
        optimizer=OptimizerConfig(learning_rate=3e-3, decay="cosine"),
        training=TrainingConfig(epochs=40, batch_size=1000, evaluate_epochs=10),
        evaluation=EvaluationConfig(ks=(10,), monitor="rmse", rmse=True),
    )
