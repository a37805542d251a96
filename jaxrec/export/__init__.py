"""From a trained run to an artefact that needs no jaxrec to run, and back into a process.

Writing is in `jaxrec.export.run`, which reads runs; what is imported here only reads artefacts.
"""

from jaxrec.export.artefact import Artefact, load_artefact
from jaxrec.export.golden import check_golden

__all__ = ["Artefact", "check_golden", "load_artefact"]
