"""Models: one family member a file, each with a frozen `Config` and a module."""

from jaxrec.models import matrix_factorization, sasrec
from jaxrec.models.content import WithContent
from jaxrec.models.heads import Head, WithHeads
from jaxrec.models.matrix_factorization import MatrixFactorization
from jaxrec.models.sasrec import SASRec

__all__ = [
    "Head",
    "MatrixFactorization",
    "SASRec",
    "WithContent",
    "WithHeads",
    "matrix_factorization",
    "sasrec",
]
