"""Half the width and one block, taught by the model of sasrec_beauty.py.

    python scripts/teach.py --workdir=runs/beauty --output=runs/beauty-labels -k 50
    python scripts/train.py --config=configs/sasrec_beauty_student.py --data=data/beauty \
        --workdir=runs/student --config.data.labels=runs/beauty-labels

The labels are the teacher's 50 best items before each training event. Expected (seed 0): test
ndcg@10 0.0536, recall@10 0.0868, in 4 minutes on 2 CPU cores (14 ms a step).
"""

from jaxrec.data import SequenceData, Taught
from jaxrec.distillation import Distillation
from jaxrec.evaluation import EvaluationConfig
from jaxrec.models import sasrec
from jaxrec.objectives import FullSoftmax
from jaxrec.optim import OptimizerConfig
from jaxrec.training import ExperimentConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    """Returns the experiment."""
    return ExperimentConfig(
        data=Taught(data=SequenceData(max_len=50, targets="packed", row_len=64), labels=""),
        model=sasrec.Config(
            max_len=50,
            dim=32,
            num_blocks=1,
            hidden=128,
            block="post_norm",
            positions="rotary",
            temperature=1 / 16,
            dropout=0.2,
            attention_dropout=0.2,
        ),
        objective=Distillation(objective=FullSoftmax(), weight=0.7, top_k=50),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        training=TrainingConfig(
            epochs=36, batch_size=8, evaluate_epochs=3, patience=3, average=0.9995
        ),
        evaluation=EvaluationConfig(ks=(5, 10, 20)),
    )
